"""A(x, c): the paper's targeted L2 attack on the base classifier, and the store that computes each one only once."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from adv_lock.attacks.mixing import budget
from common import attacks, files
from common.arrays import to_labels
from common.attacks.calls import compiled
from common.errors import UserError


class Attack(NamedTuple):
    """The targeted attack on one base classifier.

    `towards`: uint8 pictures (B, H, W, C) of one size, classes (B,), optionally another number of steps -> the
    perturbation float16 (B, H, W, C) in [0, 1] units. `answers`: uint8 pictures -> the classes the base classifier
    sees, int32 (B,). `fingerprint`: hex digest of all that a perturbation depends on besides pictures and classes, with
    the weights as they are when it is called.
    """

    towards: Callable[..., np.ndarray]
    answers: Callable[[np.ndarray], np.ndarray]
    steps: int
    fingerprint: Callable[[], str]


def targeted_attack(base: keras.Model, *, eps: float, alpha: float, steps: int) -> Attack:
    """A(x, c) of the paper: `steps` of length `alpha` along the unit gradient of -cross-entropy(F(x), c), inside the L2
    ball of radius `eps`, from the picture itself, keeping the iterate of least cross-entropy.

    `eps` and `alpha` hold at 32 x 32 x 3 and grow with the square root of the number of values. Pictures of another
    size than the base classifier's are resized inside the graph, so the gradient reaches their own pixels.
    """
    size = tuple(base.input_shape[1:3])
    channels = base.input_shape[3]

    def logits(model: keras.Model, x: tf.Tensor) -> tf.Tensor:
        if tuple(x.shape[1:3]) != size:
            x = tf.ensure_shape(tf.image.resize(x, size, antialias=True), [None, *size, channels])
        return attacks.logits_of(model)(x)

    def perturb(
        model: keras.Model, images: tf.Tensor, target: tf.Tensor, radius: tf.Tensor, step: tf.Tensor, count: tf.Tensor
    ) -> tf.Tensor:
        x = tf.cast(images, tf.float32) / 255.0
        space = attacks.l2(x, radius)
        rule = attacks.ascent(attacks.unit_l2, step)
        objective = attacks.targeted_ce(partial(logits, model), target)
        best = attacks.search(objective, rule, space, x, count, rank=attacks.highest)
        # Half precision is a twentieth of a grey level at most: what is stored and what is used are the same numbers.
        return tf.cast(best.x - x, tf.float16)

    def answer(model: keras.Model, images: tf.Tensor) -> tf.Tensor:
        z = logits(model, tf.cast(images, tf.float32) / 255.0)
        return tf.argmax(z, axis=1, output_type=tf.int32)

    def function(of: Callable, images: np.ndarray, *more: tf.TensorSpec) -> Callable:
        if images.ndim != 4 or images.shape[3] != channels:
            raise UserError(f"pictures of shape {images.shape[1:]}: the base model takes {channels} channel(s)")
        # Pictures of the model's own size get a graph of that fixed shape; all other sizes share one. A fully
        # convolutional classifier takes any size.
        shape = size if None in size or images.shape[1:3] == size else (None, None)
        return compiled(
            base, ("lock", of.__name__, shape), of, [tf.TensorSpec([None, *shape, channels], tf.uint8), *more]
        )

    def towards(images: np.ndarray, target: np.ndarray, steps: int = steps) -> np.ndarray:
        shape = images.shape[1:]
        step, radius = budget(alpha, shape), budget(eps, shape)
        scalar, targets, whole = tf.TensorSpec([]), tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)
        run = function(perturb, images, targets, scalar, scalar, whole)
        return run(images, to_labels(target, len(images)), tf.constant(radius), tf.constant(step), steps).numpy()

    def answers(images: np.ndarray) -> np.ndarray:
        return function(answer, images)(images).numpy()

    def fingerprint() -> str:
        # The weights alone do not tell how they are used, nor in which range the network takes its pictures.
        digest = hashlib.sha256(repr((eps, alpha, steps)).encode())
        digest.update(json.dumps(base.get_config(), sort_keys=True, default=repr).encode())
        for weight in base.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()

    return Attack(towards, answers, steps, fingerprint)


def at_size(pictures: Iterable[np.ndarray], base: keras.Model) -> np.ndarray:
    """`pictures`, uint8 (H, W, C) each, taken one by one, as the classifier `base` sees them: float32 (N, height,
    width, C) in [0, 1], those of any size at the size of the first where `base` takes any."""
    size, images = tuple(base.input_shape[1:3]), []
    for picture in pictures:
        x = tf.cast(picture, tf.float32) / 255.0
        size = tuple(side or own for side, own in zip(size, picture.shape[:2], strict=True))
        images.append(x if picture.shape[:2] == size else tf.image.resize(x, size, antialias=True))
    return np.stack([x.numpy() for x in images])


class Store:
    """Perturbations on disk, found again by attack, pictures and targets, so that lock methods share them and an
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
        perturbation = self.attack.towards(images, target)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return perturbation, seconds


def attacked(images: np.ndarray, perturbations: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The attacked pictures float32 in [0, 1], one array per perturbation."""
    clean = images.astype(np.float32) / 255.0
    return [np.clip(clean + perturbation.astype(np.float32), 0.0, 1.0) for perturbation in perturbations]
