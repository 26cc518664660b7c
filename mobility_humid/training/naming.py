"""What a classifier of drivers is worth: its loss and accuracy on validation days."""

import keras
import numpy as np

from common.evaluation.predictions import outputs


def watch(model: keras.Model, x: np.ndarray, driver: np.ndarray) -> dict[str, float]:
    """Loss and accuracy on validation samples `x` (n, ...) of drivers `driver` (n,)."""
    z = outputs(model, x).astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    own = z[np.arange(len(z)), driver] - np.log(np.exp(z).sum(axis=1))
    return {"validation_loss": float(-own.mean()), "validation_accuracy": float(np.mean(z.argmax(axis=1) == driver))}
