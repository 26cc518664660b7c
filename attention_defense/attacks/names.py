"""The attacks by name, for options that must not wait for TensorFlow."""

from typing import Literal

AttackName = Literal[
    "fgsm",
    "step_ll",
    "r_step_ll",
    "iter_ll",
    "pgd20",
    "margin20",
    "pgd100",
    "attention",
    "displace",
    "gated",
    "adaptive",
    "autoattack_fast",
    "autoattack",
    "noise",
]
