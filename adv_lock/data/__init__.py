"""Reading locked data sets and keys."""
