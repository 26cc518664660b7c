"""The two tasks, how a network learns them, and how it is hardened."""
