"""What a recommender learnt, and its top lists, as files."""

from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import read_npz, write_npz
from multimedia_recsys.data.interactions import Interactions
from multimedia_recsys.models.recommenders import Bpr, Factors, fit, popularity
from multimedia_recsys.models.settings import Kind, Settings


def trained(
    kind: Kind, feedback: Interactions, scaled: np.ndarray, settings: Settings, *, seed: int, **how
) -> "Bpr | None":
    """A recommender of that kind; None for popularity, which learns nothing."""
    return None if kind == "popularity" else fit(kind, feedback, scaled, settings, seed=seed, **how)


def factors_of(model: "Bpr | None", feedback: Interactions, scaled: np.ndarray) -> Factors:
    """Scores of all items that look like `scaled` (N, D)."""
    return popularity(feedback) if model is None else model.factors(scaled)


def save(path: Path, model: Bpr, scale: float) -> None:
    """Write a trained recommender, and by what the features were divided."""
    arrays = {weight.name: np.asarray(weight) for weight in model.weights}
    write_npz(path, {**arrays, "scale": np.float32(scale)})


def load(path: Path, feedback: Interactions, features: int) -> tuple[Bpr, float]:
    """The recommender in `path`, for that feedback and features of that length, and the scale of the features.

    Errors: `UserError` for a file that is missing, damaged or of another shop.
    """
    arrays = read_npz(path)
    if not {"user", "item", "bias", "scale"} <= set(arrays):
        raise UserError(f"{path}: holds no recommender; make it by rec_generator.py")
    visual = arrays["visual_user"].shape[1] if "visual_user" in arrays else 0
    model = Bpr(feedback.users, feedback.items, features, arrays["user"].shape[1], visual, 0)
    for weight in model.weights:
        found = arrays.get(weight.name)
        if found is None or found.shape != tuple(weight.shape):
            shape = None if found is None else found.shape
            raise UserError(f"{path}[{weight.name}]: {shape}, expected {tuple(weight.shape)}; it is of another shop")
        weight.assign(found)
    return model, float(arrays["scale"])


def read_lists(path: Path, feedback: Interactions) -> np.ndarray:
    """Top lists int32 (U, K) of an `.npz`. Errors: `UserError` for one of another shop."""
    lists = read_npz(path).get("items")
    if lists is None or lists.ndim != 2 or len(lists) != feedback.users or lists.max(initial=-1) >= feedback.items:
        raise UserError(f"{path}: holds no lists of {feedback.users} users; make them by rec_generator.py")
    return lists
