"""Embedding networks, and embeddings of networks of others."""
