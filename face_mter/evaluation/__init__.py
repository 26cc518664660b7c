"""Face verification on held-out identities."""
