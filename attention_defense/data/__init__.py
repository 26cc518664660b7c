"""Labelled images, where known with the place of their object."""
