"""How multimedia_recsys judges."""
