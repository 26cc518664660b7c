"""Networks, their attention maps, and the terms that are made of them."""
