"""Attacks on trips, within cells of a grid."""
