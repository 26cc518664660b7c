"""Training of attention_defense."""
