"""Networks of the paper, in addition to those of `common.models`."""
