"""MTER: the triplet penalty, and how the networks of this paper are trained."""
