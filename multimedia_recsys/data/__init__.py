"""What multimedia_recsys works on."""
