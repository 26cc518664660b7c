"""What a verdict says, from plain numbers and texts: without a model, and without TensorFlow."""

from collections.abc import Mapping
from typing import Any

from common.evaluation.statistics import Estimate

QUICK, SINGLE, PGD = "a first short attack", "one step", "PGD-50"
"""Attacks of every verdict, by their names in tables."""

# Failing one of these means that the bound says little of the model.
_DECISIVE = ("B3", "B6", "B11", "B12", "B13", "B16")

_NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1"}
_MECHANISMS: dict[str, str] = {
    "scaled logits": "scaled logits, or a softmax on top",
    "non-differentiable": "a step without a slope, or with one that leads elsewhere",
    "random": "random answers",
    "rejecting": "it rejects what it finds suspicious",
    "misleading gradients": "cross-entropy and its slope lead elsewhere",
}


def doubts_of(facts: Mapping[str, Any]) -> list[str]:
    """What makes the bound of `Verdict.facts` inconclusive."""
    failed = [check["name"] for check in facts["checks"] if check["passed"] is False and check["name"] in _DECISIVE]
    return failed if facts["climbed"] else [*failed, "no slope was found to climb on"]


def sentence_of(facts: Mapping[str, Any]) -> str:
    """The sentence of `Verdict.facts`: what was run and what it left, and how far to believe it."""
    images = facts["eight_bit"] and facts["norm"] == "linf"
    radius = f"{255 * facts['eps']:.4g}/255" if images else f"{facts['eps']:.4g}"
    clean, robust = (Estimate(**facts[name]) for name in ("clean", "robust"))
    names = ", ".join(step["name"] for step in facts["tried"] if step["accuracy"] and step["name"] != QUICK)
    ball = f"{_NORMS[facts['norm']]} {radius}"
    text = (
        f"At most {percent(robust)} of {robust.n} examples are answered rightly within {ball}, after {names};"
        f" {percent(clean)} are without attack."
    )
    if facts["false_positives"]:
        text += f" The detector rejects {percent(Estimate(**facts['false_positives']))} of the clean examples."
    if facts["mechanism"] != "none":
        where = f" (in {', '.join(facts['layers'])})" if facts["layers"] else ""
        text += f" The model hides from gradients: {_MECHANISMS[facts['mechanism']]}{where}."
        if facts["climbed"] and facts["climbed"] != ["as it is"]:
            text += f" It was attacked {'; '.join(facts['climbed'])}."
    if doubts := doubts_of(facts):
        return f"{text} Inconclusive ({', '.join(doubts)}): what stands may be far less."
    return f"{text} It is an upper bound, which an attack made for this model may lower."


def percent(rate: Estimate) -> str:
    """A rate in words, with its interval."""
    interval = f" ({100 * rate.low:.1f} to {100 * rate.high:.1f})" if rate.low is not None else ""
    return f"{100 * rate.value:.1f} %{interval}"
