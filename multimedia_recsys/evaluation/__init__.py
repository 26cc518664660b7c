"""Ranks of items in the recommendation lists, and their change under attack."""
