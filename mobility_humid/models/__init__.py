"""Networks of mobility_humid."""
