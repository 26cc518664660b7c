"""An evaluation shared by several workers: each attacks its part of the examples, and all get what all have found."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Shards(NamedTuple):
    """The part of one worker, at its `place` of `count`. `strategy`: how what they found is exchanged, None for one
    worker alone. All workers must ask for the same, in the same order."""

    place: int = 0
    count: int = 1
    strategy: tf.distribute.Strategy | None = None

    @classmethod
    def of(cls, strategy: tf.distribute.Strategy) -> "Shards":
        """Of a strategy over workers; of any other there is one worker."""
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return cls()
        resolver = strategy.cluster_resolver
        workers = resolver.cluster_spec().as_dict()
        # As collectives count them: the chief, if there is one, before all workers.
        first = len(workers.get("chief", [])) if resolver.task_type == "worker" else 0
        count = sum(len(workers.get(kind, [])) for kind in ("chief", "worker"))
        return cls(first + resolver.task_id, count, strategy)

    def mine(self, rows: np.ndarray) -> np.ndarray:
        """Of `rows` (n,) those of this worker."""
        return rows[self.place :: self.count]

    def own(self, path: Path | None) -> Path | None:
        """The file of this worker, beside those of the others."""
        return path if path is None or self.count == 1 else path.with_stem(f"{path.stem}_{self.place}")

    def joined(self, rows: np.ndarray, found: np.ndarray) -> np.ndarray:
        """For `rows` (n,) what their workers have `found`, (n, ...), each for its own."""
        if self.count == 1:
            return found
        parts = self._gathered(found)
        whole, first = np.empty((len(rows), *found.shape[1:]), found.dtype), 0
        for place in range(self.count):
            size = len(rows[place :: self.count])
            whole[place :: self.count] = parts[first : first + size]
            first += size
        return whole

    def total(self, number: int | None) -> int | None:
        """The sum of what each worker counted, None where nobody did."""
        if self.count == 1 or number is None:
            return number
        # Whole numbers of single precision end at 2^24.
        return int(self._gathered(np.array([number], np.int64)).sum())

    def _gathered(self, values: np.ndarray) -> np.ndarray:
        # Collectives have no bool.
        sent = values.astype(np.int32) if values.dtype == bool else values
        own = self.strategy.experimental_distribute_values_from_function(lambda context: tf.constant(sent))
        return np.asarray(self.strategy.gather(own, axis=0)).astype(values.dtype)
