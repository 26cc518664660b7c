"""Shops: items, images, feedback, and what networks made of them."""
