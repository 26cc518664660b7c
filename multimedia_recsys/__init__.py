"""Multimedia recommenders under attack: images changed so that their items climb in everybody's list (TAaMR 2020)."""
