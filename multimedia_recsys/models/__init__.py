"""The network that sees images, and the recommenders."""
