"""Other libraries of attacks, and what all of them are measured on."""
