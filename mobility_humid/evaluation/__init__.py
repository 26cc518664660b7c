"""How mobility_humid judges."""
