"""Attacks of mobility_humid."""
