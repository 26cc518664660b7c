"""What attacks on trips did, and figures of it."""
