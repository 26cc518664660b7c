"""Training of common."""
