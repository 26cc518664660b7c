"""Training of mobility_humid."""
