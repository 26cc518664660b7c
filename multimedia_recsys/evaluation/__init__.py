"""Where items stand in the lists, before and after."""
