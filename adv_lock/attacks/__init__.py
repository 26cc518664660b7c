"""The lock: the targeted attack of the base classifier, towards which class, and how both become images."""
