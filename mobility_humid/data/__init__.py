"""From GPS to trips in grid cells, and samples of them."""
