"""What at least two papers of the suite use. Knows no paper."""
