"""Gradient attacks: one loop (`search`), what to raise, where to stand, how to move, which iterate to keep."""

from common.attacks.budget import bim, corner_noise, feature_pgd, fftgsm, fgsm, iftgsm, mi_fgsm, pgd, r_step_ll, step_ll
from common.attacks.dataset import Attacked, attack_dataset
from common.attacks.logits import check_logits, inference, logits_of
from common.attacks.loop import Objective, Rank, Result, highest, merge, search, strongest
from common.attacks.minimal import cw_l0, cw_l2, ddn, nearest, sigma_zero
from common.attacks.objectives import (
    cosine_to,
    divergence_from,
    least_likely,
    targeted_ce,
    targeted_margin,
    untargeted_ce,
    untargeted_margin,
)
from common.attacks.pruning import eliminate, salient
from common.attacks.threat_models import Space, box, l1, l2, linf
from common.attacks.updates import Rule, adam, ascent, top_l1, unit_l2

__all__ = [
    "Attacked",
    "Objective",
    "Rank",
    "Result",
    "Rule",
    "Space",
    "adam",
    "ascent",
    "attack_dataset",
    "bim",
    "box",
    "check_logits",
    "corner_noise",
    "cosine_to",
    "cw_l0",
    "cw_l2",
    "ddn",
    "divergence_from",
    "eliminate",
    "feature_pgd",
    "fftgsm",
    "fgsm",
    "highest",
    "iftgsm",
    "inference",
    "l1",
    "l2",
    "least_likely",
    "linf",
    "logits_of",
    "merge",
    "mi_fgsm",
    "nearest",
    "pgd",
    "r_step_ll",
    "salient",
    "search",
    "sigma_zero",
    "step_ll",
    "strongest",
    "targeted_ce",
    "targeted_margin",
    "top_l1",
    "unit_l2",
    "untargeted_ce",
    "untargeted_margin",
]
