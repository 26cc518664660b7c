"""Attacks on the images of items."""
