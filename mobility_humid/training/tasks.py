"""The two tasks that the attacks and the defence work on: are two drivers the same, and which driver is it?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.runs.script import Script
from mobility_humid.classification import classification
from mobility_humid.data.pairs import Pairs, Singles
from mobility_humid.data.samples import SEEN, TEST, UNSEEN, Fleet
from mobility_humid.train import train

if TYPE_CHECKING:
    import keras


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
    """`producer` trains the model, on samples of `sides` drivers; `parts` are what it is tested on."""

    name: str
    producer: Script
    sides: int
    parts: tuple[str, ...]

    def samples(self, fleet: Fleet, part: str, count: int) -> Samples:
        """`count` samples of `part`, always the same."""
        drawn = (fleet.pairs if self.sides == 2 else fleet.singles)(part, count)
        return Samples(fleet.samples(drawn), self.label(drawn), drawn.driver)

    def label(self, drawn: Pairs | Singles) -> np.ndarray:
        """1 for the same driver, or the number of the driver."""
        return drawn.same if isinstance(drawn, Pairs) else drawn.driver

    def outputs(self, fleet: Fleet) -> tuple[int, ...]:
        """How many numbers a model may answer with."""
        return (1, 2) if self.sides == 2 else (len(fleet.trips.drivers),)

    @property
    def loss(self) -> Callable[..., Any]:
        """The loss of `common.training.loop`."""
        from common.training import loop
        from mobility_humid.training import verification

        return verification.same_driver_loss if self.sides == 2 else loop.cross_entropy

    def watch(self, model: "keras.Model", samples: Samples) -> dict[str, float]:
        """Loss and accuracy on validation samples."""
        from mobility_humid.training import naming, verification

        return (verification if self.sides == 2 else naming).watch(model, samples.x, samples.y)

    def auc(self, model: "keras.Model", samples: Samples) -> float:
        """How well a verifier's scores tell pairs apart, whatever its threshold."""
        from common.evaluation import predictions
        from common.evaluation.statistics import auc

        z = predictions.outputs(model, samples.x)
        return auc(z[:, -1] - (z[:, 0] if z.shape[1] == 2 else 0.0), samples.y)

    def settle(self, model: "keras.Model", validation: Samples) -> None:
        """Fix the threshold of a verifier on validation samples; a classifier has none."""
        from mobility_humid.training import verification

        if self.sides == 2:
            verification.fix_threshold(model, validation.x, validation.y)


SIAMESE = Task("siamese", train, 2, (SEEN, UNSEEN))
CLASSIFICATION = Task("classification", classification, 1, (TEST,))
TASKS = {task.name: task for task in (SIAMESE, CLASSIFICATION)}
