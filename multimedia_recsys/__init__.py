"""Multimedia recommenders under attack: pictures changed so that their items climb in everybody's list (TAaMR 2020)."""
