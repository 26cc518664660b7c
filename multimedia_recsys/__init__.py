"""Multimedia recommenders under attack: perturbed images promote their items in the recommendation lists (TAaMR
2020)."""
