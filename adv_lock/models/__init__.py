"""Networks of the paper beside those of `common.models`."""
