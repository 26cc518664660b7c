"""Adversarial Lock: images that people can use and that mislead whoever trains on them (arXiv 2002.03793)."""
