"""How common judges."""
