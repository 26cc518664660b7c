"""How attention_defense judges."""
