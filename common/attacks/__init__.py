"""Gradient attacks: one loop (`search`), what to raise, where to stand, how to move, which iterate to keep."""

from common.attacks.logits import check_logits, inference, logits_of
from common.attacks.loop import Objective, Rank, Result, highest, merge, search, strongest
from common.attacks.named import bim, fftgsm, fgsm, iftgsm, in_batches, mi_fgsm, pgd, r_step_ll, step_ll
from common.attacks.objectives import cosine_to, least_likely, targeted_ce, untargeted_ce
from common.attacks.rules import Rule, ascent, top_l1, unit_l2
from common.attacks.spaces import Space, l1, l2, linf

__all__ = [
    "Objective",
    "Rank",
    "Result",
    "Rule",
    "Space",
    "ascent",
    "bim",
    "check_logits",
    "cosine_to",
    "fftgsm",
    "fgsm",
    "highest",
    "iftgsm",
    "in_batches",
    "inference",
    "l1",
    "l2",
    "least_likely",
    "linf",
    "logits_of",
    "merge",
    "mi_fgsm",
    "pgd",
    "r_step_ll",
    "search",
    "step_ll",
    "strongest",
    "targeted_ce",
    "top_l1",
    "unit_l2",
    "untargeted_ce",
]
