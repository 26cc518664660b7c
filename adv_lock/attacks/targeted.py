"""A(x, c): the paper's targeted L2 attack on the base classifier, and the store that computes each one only once."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from adv_lock.attacks.mixing import budget
from adv_lock.attacks.views import VIEWS
from common import attacks, files
from common.arrays import as_float, to_labels
from common.attacks.compile import compiled
from common.errors import UserError


class Attack(NamedTuple):
    """The targeted attack on one base classifier.

    `perturb`: uint8 images (B, H, W, C) of one size, classes (B,), optionally another number of steps -> the
    perturbation float16 (B, H, W, C) in [0, 1] units. `answers`: uint8 images -> the classes the base classifier
    sees, int32 (B,). `fingerprint`: hex digest of all that a perturbation depends on besides images and classes, with
    the weights as they are when it is called. `views`: what else the images look like their targets through.
    """

    perturb: Callable[..., np.ndarray]
    answers: Callable[[np.ndarray], np.ndarray]
    steps: int
    fingerprint: Callable[[], str]
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resized:
    """The logits that a classifier of images of `size` gives to images of any size, resized inside the graph."""

    size: tuple[int | None, int | None]
    channels: int

    def __call__(self, model: keras.Model, x: tf.Tensor) -> tf.Tensor:
        if None not in self.size and tuple(x.shape[1:3]) != self.size:
            x = tf.ensure_shape(tf.image.resize(x, self.size, antialias=True), [None, *self.size, self.channels])
        return attacks.logits_of(model)(x)

    def answer(self, model: keras.Model, images: tf.Tensor) -> tf.Tensor:
        """The classes of uint8 `images`, int32 (B,)."""
        return tf.argmax(self(model, as_float(images)), axis=1, output_type=tf.int32)


@dataclass(frozen=True)
class Towards:
    """Minus the cross-entropy of the `target`: of the image as it is, or the mean over that and its `views`."""

    logits: Resized
    views: tuple[str, ...] = ()

    def __call__(self, model: keras.Model, inputs: attacks.Inputs) -> attacks.Objective:
        seen = [partial(self.logits, model), *(partial(self._through, model, VIEWS[name]) for name in self.views)]
        each = [attacks.targeted_ce(logits, inputs) for logits in seen]
        if len(each) == 1:
            return each[0]

        def objective(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            values, successes = zip(*(of(x) for of in each), strict=True)
            return tf.reduce_mean(tf.stack(values), axis=0), tf.reduce_all(tf.stack(successes), axis=0)

        return objective

    def _through(self, model: keras.Model, view: Callable, x: tf.Tensor) -> tf.Tensor:
        return self.logits(model, view(x))


TARGETED = attacks.in_ball(attacks.targeted_ce, "l2", classes=False, selection=attacks.best_loss)
"""A(x, c) on images of the classifier's own size."""


def targeted_attack(base: keras.Model, *, eps: float, alpha: float, steps: int, views: Sequence[str] = ()) -> Attack:
    """A(x, c) of the paper: `steps` of length `alpha` along the unit gradient of -cross-entropy(F(x), c), inside the L2
    ball of radius `eps`, from the image itself, keeping the iterate of least cross-entropy.

    `eps` and `alpha` hold at 32 x 32 x 3 and grow with the square root of the number of values. Images of another
    size than the base classifier's are resized inside the graph, so the gradient reaches their own pixels. `views`, of
    `views.VIEWS`: what else the images must look like their targets through, all weighing the same.
    """
    size, channels = tuple(base.input_shape[1:3]), base.input_shape[3]
    logits = Resized(size, channels)

    def check_channels(images: np.ndarray) -> bool:
        """Whether `images` are of the model's own size: those get a graph of that fixed shape, all other sizes share
        one. A fully convolutional classifier takes any size."""
        if images.ndim != 4 or images.shape[3] != channels:
            raise UserError(f"images of shape {images.shape[1:]}: the base model takes {channels} channel(s)")
        return None not in size and images.shape[1:3] == size

    def perturb(images: np.ndarray, target: np.ndarray, steps: int = steps) -> np.ndarray:
        fixed, shape = check_channels(images), images.shape[1:]
        attack = replace(TARGETED, objective=Towards(logits, tuple(views)), fixed_size=fixed)
        x = as_float(tf.constant(images))
        inputs = {"x": x, "target": to_labels(target, len(images)), "steps": steps}
        best = attacks.run(attack, base, {**inputs, "eps": budget(eps, shape), "alpha": budget(alpha, shape)})
        # Half precision is a twentieth of a grey level at most: what is stored and what is used are the same numbers.
        return tf.cast(best - x, tf.float16).numpy()

    def answers(images: np.ndarray) -> np.ndarray:
        shape = size if check_channels(images) else (None, None)
        signature = [tf.TensorSpec([None, *shape, channels], tf.uint8)]
        return compiled(base, ("lock", logits, shape), logits.answer, signature)(images).numpy()

    def fingerprint() -> str:
        # The weights alone do not tell how they are used, nor in which range the network takes its images.
        settings = (eps, alpha, steps, *([tuple(views)] if views else []))
        digest = hashlib.sha256(repr(settings).encode())
        digest.update(json.dumps(base.get_config(), sort_keys=True, default=repr).encode())
        for weight in base.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()

    return Attack(perturb, answers, steps, fingerprint, tuple(views))


def at_size(images: Iterable[np.ndarray], base: keras.Model) -> np.ndarray:
    """`images`, uint8 (H, W, C) each, taken one by one, as the classifier `base` sees them: float32 (N, height,
    width, C) in [0, 1], those of any size at the size of the first where `base` takes any."""
    size, seen = tuple(base.input_shape[1:3]), []
    for image in images:
        x = tf.cast(image, tf.float32) / 255.0
        size = tuple(side or own for side, own in zip(size, image.shape[:2], strict=True))
        seen.append(x if image.shape[:2] == size else tf.image.resize(x, size, antialias=True))
    return np.stack([x.numpy() for x in seen])


class PerturbationCache:
    """Perturbations on disk, found again by attack, images and targets, so that lock methods share them and an
    interrupted run loses one block at most. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None, attack: Attack) -> None:
        self.folder, self.attack = folder, attack
        self.seconds = 0.0
        """Time spent on the perturbations handed out, by whichever run computed them."""

    def perturbation(self, images: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The perturbation float16 (B, H, W, C) of the uint8 `images` towards the classes `target` (B,)."""
        if self.folder is None:
            return self._timed(images, target)[0]
        digest = hashlib.sha256(repr((self.attack.fingerprint(), images.shape, target.tolist())).encode())
        digest.update(np.ascontiguousarray(images).tobytes())
        name = digest.hexdigest()[:32]
        path = self.folder / name[:2] / f"{name[2:]}.npz"
        if path.is_file():
            stored = files.read_npz(path)
            self.seconds += float(stored["seconds"])
            return stored["perturbation"]
        perturbation, seconds = self._timed(images, target)
        files.write_npz(path, {"perturbation": perturbation, "seconds": np.array(seconds)}, compress=False)
        return perturbation

    def _timed(self, images: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
        started = time.perf_counter()
        perturbation = self.attack.perturb(images, target)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return perturbation, seconds


def attacked(images: np.ndarray, perturbations: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The attacked images float32 in [0, 1], one array per perturbation."""
    clean = images.astype(np.float32) / 255.0
    return [np.clip(clean + perturbation.astype(np.float32), 0.0, 1.0) for perturbation in perturbations]
