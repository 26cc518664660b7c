"""Networks of multimedia_recsys."""
