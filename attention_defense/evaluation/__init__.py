"""What attention maps tell of attacks, and figures of it."""
