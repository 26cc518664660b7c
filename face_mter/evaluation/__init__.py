"""How well people are told apart whom a network never saw."""
