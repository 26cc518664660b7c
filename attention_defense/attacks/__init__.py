"""Attacks on attention maps, and the table of all that a model meets."""
