"""The two tasks that the attacks and the defence work on: are two drivers the same, and which driver is it?"""

from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np

from common.evaluation.predictions import outputs
from common.evaluation.statistics import auc
from common.training.loop import Loss, cross_entropy
from mobility_humid.data.pairs import Pairs, Singles
from mobility_humid.data.samples import SEEN, TEST, UNSEEN, Fleet
from mobility_humid.training import verification


class Samples(NamedTuple):
    """Samples `x` float32 (n, rows, length, features), labels `y` int32 (n,), and whose they are, (n,) or (n, 2)."""

    x: np.ndarray
    y: np.ndarray
    driver: np.ndarray

    def first(self, count: int) -> "Samples":
        """The first `count` samples."""
        return Samples(*(field[:count] for field in self))


@dataclass(frozen=True)
class Task:
    """What a model answers about samples of `sides` drivers; `parts` are what it is tested on."""

    name: str
    sides: int
    parts: tuple[str, ...]

    def drawn(self, fleet: Fleet, part: str, count: int) -> Pairs | Singles:
        """`count` pairs or single drivers of `part`, always the same."""
        return (fleet.pairs if self.sides == 2 else fleet.singles)(part, count)

    def samples(self, fleet: Fleet, part: str, count: int) -> Samples:
        """`count` samples of `part`, always the same."""
        drawn = self.drawn(fleet, part, count)
        return Samples(fleet.samples(drawn), self.label(drawn), drawn.driver)

    def label(self, drawn: Pairs | Singles) -> np.ndarray:
        """1 for the same driver, or the number of the driver."""
        return drawn.same if isinstance(drawn, Pairs) else drawn.driver

    def outputs(self, fleet: Fleet) -> tuple[int, ...]:
        """How many numbers a model may answer with."""
        return (1, 2) if self.sides == 2 else (len(fleet.trips.drivers),)

    @property
    def loss(self) -> Loss:
        """The loss that it is trained by."""
        return verification.same_driver_loss if self.sides == 2 else cross_entropy

    def watch(self, model: keras.Model, samples: Samples) -> dict[str, float]:
        """Loss and accuracy on validation samples."""
        return (verification.watch if self.sides == 2 else watch_names)(model, samples.x, samples.y)

    def auc(self, model: keras.Model, samples: Samples) -> float:
        """How well a verifier's scores tell pairs apart, whatever its threshold."""
        z = outputs(model, samples.x)
        return auc(z[:, -1] - (z[:, 0] if z.shape[1] == 2 else 0.0), samples.y)

    def calibrate(self, model: keras.Model, validation: Samples) -> None:
        """Fix the threshold of a verifier on validation samples; a classifier has none."""
        if self.sides == 2:
            verification.fix_threshold(model, validation.x, validation.y)


SIAMESE = Task("siamese", 2, (SEEN, UNSEEN))
CLASSIFICATION = Task("classification", 1, (TEST,))
TASKS = {task.name: task for task in (SIAMESE, CLASSIFICATION)}


def watch_names(model: keras.Model, x: np.ndarray, driver: np.ndarray) -> dict[str, float]:
    """Loss and accuracy of a classifier on validation samples `x` (n, ...) of drivers `driver` (n,)."""
    z = outputs(model, x).astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    own = z[np.arange(len(z)), driver] - np.log(np.exp(z).sum(axis=1))
    return {"validation_loss": float(-own.mean()), "validation_accuracy": float(np.mean(z.argmax(axis=1) == driver))}
