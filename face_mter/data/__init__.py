"""Faces and digits, and the pairs that are made of them."""
