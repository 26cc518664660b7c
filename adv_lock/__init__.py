"""Adversarial Lock: images that people can use and that mislead models trained on them (arXiv 2002.03793)."""
