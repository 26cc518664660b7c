"""Locked data sets as whoever holds them reads them."""
