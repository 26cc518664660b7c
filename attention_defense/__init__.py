"""AAD: defence by rectifying and preserving attention maps; attacks on them, and what they tell."""
