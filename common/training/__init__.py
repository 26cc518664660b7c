"""The training loop that every paper shares, and what it is given."""
