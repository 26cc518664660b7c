"""What a model answers, how well, how far images moved, and how sure a figure is."""
