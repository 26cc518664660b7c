"""Attacks of attention_defense."""
