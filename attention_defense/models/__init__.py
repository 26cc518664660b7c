"""Networks of attention_defense."""
