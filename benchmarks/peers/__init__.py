"""Other libraries, and what all are measured on."""
