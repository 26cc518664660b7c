"""Attacks of multimedia_recsys."""
