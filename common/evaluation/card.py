"""A verdict as files that somebody else can check: what was measured, and the adversarial examples themselves.

`write` makes `card.json`, `examples.npz` and `card.md`; `verify` computes the bound anew from them and the model, in a
single forward pass: adversarial examples prove an upper bound whoever made them, and however.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common.attacks.autoattack import within
from common.errors import UserError
from common.evaluation import statistics
from common.evaluation.facts import doubts_of, percent, sentence_of
from common.evaluation.pool import Pool
from common.evaluation.predictions import outputs
from common.evaluation.statistics import Estimate
from common.evaluation.verdict import Verdict
from common.files import json_text, read_npz, sha256, write_npz, write_text
from common.per_model import layers_of

Model = Callable[[tf.Tensor], tf.Tensor]

FORMAT = "card of a verdict, 1"
CLOSE = 1e-4
"""Answers whose two leading logits are nearer than this may be others on another machine."""

_JSON, _EXAMPLES, _TEXT = "card.json", "examples.npz", "card.md"


class Verified(NamedTuple):
    """What a card turned out to be: the `problems`, none if it holds; the bound as computed anew, None where the
    examples are not those of the card; and how many examples are `close` to the border, where another machine may
    answer otherwise."""

    problems: tuple[str, ...]
    robust: Estimate | None
    close: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether all is as the card says."""
        return not self.problems


def write(verdict: Verdict, model: Model, folder: Path | str, **told: Any) -> Path:
    """Write `verdict` on `model` into `folder`; the path of the card. `told`: what else the card should say, such as
    the data set, the command, or versions; plain values."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_npz(folder / _EXAMPLES, _packed(verdict))
    card = {
        "format": FORMAT,
        **told,
        "model": digest(model),
        "examples": {"file": _EXAMPLES, "sha256": sha256(folder / _EXAMPLES)},
        **verdict.facts,
    }
    card["digest"] = _digest(card)
    write_text(folder / _JSON, json_text(card, indent=1) + "\n")
    write_text(folder / _TEXT, markdown(card))
    return folder / _JSON


def read(path: Path | str) -> dict[str, Any]:
    """The card in a file. Errors: `UserError` for what is none, or is not all there."""
    path = Path(path)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a card.json") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not readable as JSON ({error}); expected a card.json") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise UserError(f"{path}: is no card of a verdict; expected a file with the format {FORMAT!r}")
    try:
        # Whatever is missing or of another kind shows here.
        markdown(card)
        assert isinstance(card["examples"]["file"], str) and isinstance(card["digest"], str)
        assert isinstance(card["model"], str) and card["norm"] in ("linf", "l2", "l1") and card["draws"] >= 1
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"{path}: is not a whole card ({type(error).__name__}: {error}); get it again") from error
    return card


def verify(path: Path | str, model: Model, *, detector: Model | None = None, batch_size: int = 256) -> Verified:
    """Check the card at `path` against `model`, and the `detector` that it was made with.

    Errors: `UserError` for files that are damaged or missing, and a model that takes other examples.
    """
    started, path = time.perf_counter(), Path(path)
    card = read(path)
    problems = []
    if card["digest"] != _digest(card):
        problems.append("the card was changed after it was written")
    if card["model"] != digest(model):
        problems.append("the model has other weights than the one that was judged")
    file = path.parent / Path(card["examples"]["file"]).name
    if not file.is_file():
        raise UserError(f"{file}: no such file; it lies beside its card")
    if sha256(file) != card["examples"]["sha256"]:
        problems.append("the examples were changed after the card was written")
        return Verified(tuple(problems), None, 0, time.perf_counter() - started)
    held = _unpacked(file)
    x, y, adversarial, rows, by = (held[name] for name in ("x", "y", "adversarial", "rows", "by"))
    low, high = held["box"]
    moved = _as_floats(adversarial)
    outside = ~within(_as_floats(x)[rows], moved, card["norm"], card["eps"], low, high)
    if outside.any():
        problems.append(f"{int(outside.sum())} adversarial examples are not in the ball or in the box")
    try:
        pool = Pool.of(model, detector, x, y, card["eps"], card["norm"], low, high, x.dtype == np.uint8, batch_size)
    except ValueError as error:
        raise UserError(f"{path}: does not fit the model: {error}") from error
    lead = np.abs(_lead(model, moved, batch_size)) if pool.draws == 1 else np.full(len(rows), np.inf)
    failed = np.where(outside, 0.0, pool.failed(moved, rows))
    close = lead < CLOSE
    claimed = np.bincount(by, minlength=len(card["tried"]))
    if not np.array_equal(claimed, [step["new"] for step in card["tried"]]):
        problems.append("the attacks did not break as many examples as they are said to have broken")
    if pool.draws == 1 and (wrong := int(((failed < 0.5) & ~close).sum())):
        problems.append(f"{wrong} examples that are said to be broken are answered rightly, or rejected")
    share = np.where(pool.right, 1.0 - pool.failed(pool.clean, np.arange(len(y))), 0.0)
    share[rows] = np.where(pool.right[rows], 1.0 - failed, 0.0)
    robust = statistics.independent(float(share.mean()), len(y))
    slack = int(close.sum()) / len(y) if pool.draws == 1 else 3 * 0.5 / np.sqrt(len(y) * pool.draws)
    for name, found in (("clean", pool.estimate()), ("robust", robust)):
        said = Estimate(**card[name])
        if said.n != found.n or abs(said.value - found.value) > slack + 1e-9:
            problems.append(f"{name} accuracy is said to be {percent(said)} of {said.n}; it is {percent(found)}")
        elif not np.allclose([said.low, said.high], statistics.wilson(float(said.value), said.n), atol=1e-9):
            problems.append(f"the interval of {name} accuracy is not the one of so many examples")
    return Verified(tuple(problems), robust, int(close.sum()), time.perf_counter() - started)


def markdown(card: Mapping[str, Any]) -> str:
    """A card for people."""
    lines = ["# Verdict", "", sentence_of(card), ""]
    for name in ("name", "data", "command"):
        if card.get(name):
            lines.append(f"- {name}: `{card[name]}`")
    lines += [f"- model: weights {card['model'][:16]}", f"- examples: `{card['examples']['file']}`", ""]
    lines += ["| attack | leaves right (alone) | newly broken | gradients | seconds |", "|---|---|---|---|---|"]
    for step in card["tried"]:
        alone = percent(Estimate(**step["accuracy"])) if step["accuracy"] else "only what was left"
        gradients = "" if step["gradients"] is None else f"{step['gradients']:,}"
        lines.append(f"| {step['name']} | {alone} | {step['new']} | {gradients} | {step['seconds']:.1f} |")
    lines += ["", "| | check | | found | wanted | |", "|---|---|---|---|---|---|"]
    for check in card["checks"]:
        state = {True: "pass", False: "**fail**", None: "not applicable"}[check["passed"]]
        value = "" if check["value"] is None else f"{check['value']:.4g}"
        lines.append(f"| {check['name']} | {check['asks']} | {state} | {value} | {check['wanted']} | {check['note']} |")
    if card["curve"]:
        lines += ["", f"| radius | right, of {card['curve'][0][1]['n']} that are without attack |", "|---|---|"]
        lines += [f"| {radius:.4g} | {percent(Estimate(**accuracy))} |" for radius, accuracy in card["curve"]]
    if card["left_out"]:
        lines += ["", "Left out:", *(f"- {line}" for line in card["left_out"])]
    doubts = doubts_of(card)
    lines += ["", f"Inconclusive: {', '.join(doubts)}" if doubts else "No decisive check failed.", ""]
    return "\n".join(lines)


def digest(model: Model) -> str:
    """SHA-256 of the weights of `model`, or of the models that a function holds, in their order."""
    found = hashlib.sha256()
    for layer in dict.fromkeys(layers_of(model)):
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            value = np.ascontiguousarray(variable.numpy())
            found.update(f"{value.shape} {value.dtype}".encode())
            found.update(value.tobytes())
    return found.hexdigest()


def _digest(card: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in card.items() if name != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _packed(verdict: Verdict) -> dict[str, np.ndarray]:
    """Arrays that deflate well: images as differences along a row, adversarial ones as what they moved by."""
    rows = np.flatnonzero(verdict.broken)
    shared = {"rows": rows.astype(np.int32), "by": verdict.broken_by[rows].astype(np.int16), "y": verdict.y}
    shared["box"] = np.array(verdict.box, np.float64)
    if verdict.x.dtype != np.uint8:
        return {**shared, "x": verdict.x, "adversarial": verdict.adversarial[rows]}
    moved = verdict.adversarial[rows].astype(np.int16) - verdict.x[rows]
    before = np.concatenate([np.zeros_like(verdict.x[:, :, :1]), verdict.x[:, :, :-1]], axis=2)
    small = np.int8 if np.abs(moved).max(initial=0) < 128 else np.int16
    return {**shared, "steps": verdict.x - before, "moved": moved.astype(small)}


def _unpacked(file: Path) -> dict[str, Any]:
    held = read_npz(file)
    try:
        rows, by, y, box = (held[name] for name in ("rows", "by", "y", "box"))
        if "x" in held:
            x, adversarial = held["x"].astype(np.float32), held["adversarial"].astype(np.float32)
        else:
            x = np.cumsum(held["steps"], axis=2, dtype=np.uint8)
            adversarial = held["moved"].astype(np.int16) + x[rows]
            if adversarial.min(initial=0) < 0 or adversarial.max(initial=0) > 255:
                raise ValueError("an adversarial example leaves 0..255")
            adversarial = adversarial.astype(np.uint8)
        if not (len(rows) == len(by) == len(adversarial) and len(x) == len(y) and len(np.unique(rows)) == len(rows)):
            raise ValueError("its arrays do not fit together")
        if by.min(initial=0) < 0 or adversarial.shape[1:] != x.shape[1:] or len(box) != 2:
            raise ValueError("its arrays do not fit together")
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{file}: holds no examples of a card ({error}); get it again") from error
    return {"x": x, "y": y, "adversarial": adversarial, "rows": rows, "by": by, "box": [float(end) for end in box]}


def _as_floats(x: np.ndarray) -> np.ndarray:
    return (x / np.float32(255)).astype(np.float32) if x.dtype == np.uint8 else x


def _lead(model: Model, x: np.ndarray, batch_size: int) -> np.ndarray:
    """By how much the first answer leads the second, (n,)."""
    if not len(x):
        return np.zeros(0)
    answers = outputs(model, x, batch_size=batch_size)
    if answers.shape[1] == 1:
        return answers[:, 0]
    second, first = np.sort(answers, axis=1)[:, -2:].T
    return first - second
