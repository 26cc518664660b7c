"""Unauthorised trainers: what somebody does who knows that images are locked, and wants to learn from them anyway.

Each is a change to the images that the trainer sees, fixed or drawn anew for each batch, a kind of training, or clean
images of the trainer's own. All have the same network and recipe, so that a clean control differs in the images alone.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adv_lock.attacks import views
from common.attacks import logits_of
from common.evaluation import predictions
from common.models import efficientnet, imagenet_classifier
from common.progress import track
from common.training.augmentation import Augment, jitter_and_rotate
from common.training.batches import Batch
from common.training.loop import cross_entropy
from common.training.methods import Method, pgd_training

Tensor = tf.Tensor
Change = Callable[[np.ndarray], np.ndarray]
"""Images uint8 (N, H, W, C) -> images of that shape, the same for training and for what is to be answered."""

SEED = 1_000_000
"""Added to the owner's seed: her network and the trainer's must not start from the same weights. With one architecture,
seed and recipe they would be one network, and the lock would look stronger than it is against others."""
_DRAWS, _SHIFT = 5, 2.0
_UPLOAD_QUALITY = 75
_BLOCK = 500
_ADVERSARY_STEPS = 3
# Pixels at which the network with ImageNet weights knows objects, and how many images it sees at once.
_IMAGENET_SIZE, AT_ONCE = 224, 32
# Of an unlearnable set's linear classifier; large enough not to fit noise.
_INVERSE_PENALTY = 1e-3


class Trainer(NamedTuple):
    """What a trainer does. `change` learns from the training images, and their labels, how images are changed;
    `augment` changes each batch; `method` makes the kind of training for an L-inf budget; `clean`: the share of clean
    images that the trainer has beside the locked ones, `few`: or only a few; `uses`: a network of its own, or the plain
    one, or that of ImageNet, which is not trained; or it searches among `PIPELINES`. Of photographs: `size` in pixels
    at which they are learnt from, and `upload`, what happens to each on its way, at full size. `recipe`: what differs
    in the recipe."""

    does: str
    change: Callable[[np.ndarray, np.ndarray], Change] | None = None
    augment: Augment | None = None
    method: Callable[[float], Method] | None = None
    clean: float = 0.0
    few: bool = False
    uses: Literal["own", "plain", "imagenet", "search"] = "own"
    size: int | None = None
    upload: Callable[[np.ndarray], np.ndarray] | None = None
    recipe: Mapping[str, Any] = MappingProxyType({})


def reuploaded(image: np.ndarray) -> np.ndarray:
    """An image uint8 (H, W, C) as a site for photographs gives it back: as JPEG of quality 75."""
    return jpeg(image[None], _UPLOAD_QUALITY)[0]


def halved(image: np.ndarray) -> np.ndarray:
    """An image uint8 (H, W, C) at half the size."""
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((-(-width // 2), -(-height // 2)), Image.Resampling.LANCZOS))


def jpeg(images: np.ndarray, quality: int = views.QUALITY) -> np.ndarray:
    """Images uint8 (N, H, W, C), C 1 or 3, stored as JPEG and read back."""

    def stored(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).reshape(image.shape)

    many = track(images, f"JPEG {quality}") if len(images) > 1 else images
    return np.stack([stored(image) for image in many])


def grey(images: np.ndarray) -> np.ndarray:
    """Images uint8 (N, H, W, C) without colour, of the same shape."""
    if images.shape[-1] == 1:
        return images
    luma = np.rint(images @ views.LUMA).astype(np.uint8)
    return np.repeat(luma[..., None], images.shape[-1], axis=-1)


def through(images: np.ndarray, view: str) -> np.ndarray:
    """Images uint8 (N, H, W, C) as one of `views.VIEWS` shows them."""
    blocks = (images[first : first + _BLOCK] for first in range(0, len(images), _BLOCK))
    seen = [views.VIEWS[view](tf.cast(block, tf.float32) / 255) for block in blocks]
    return np.concatenate([np.rint(np.clip(block, 0, 1) * 255).astype(np.uint8) for block in seen])


def eight_levels(images: np.ndarray) -> np.ndarray:
    """Images uint8 (N, H, W, C) with 3 bits a value, each at the middle of its level."""
    return (images & 0b11100000) | 0b00010000


def projection(images: np.ndarray, y: np.ndarray) -> Change:
    """Take out of images what a linear classifier of these training images reads: their projection onto the span of its
    weights (Sandoval-Segura et al. 2023)."""
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    scale = StandardScaler(with_std=False).fit(flat)
    weights = LogisticRegression(C=_INVERSE_PENALTY, max_iter=100).fit(scale.transform(flat), y).coef_
    basis = np.linalg.qr(weights.T.astype(np.float32))[0]

    def change(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1).astype(np.float32) / 255 - scale.mean_.astype(np.float32)
        kept = flat - flat @ basis @ basis.T + scale.mean_.astype(np.float32)
        return np.rint(np.clip(kept, 0, 1) * 255).astype(np.uint8).reshape(images.shape)

    return change


def shift_pixels(images: Tensor, seed: Tensor) -> Tensor:
    """Each pixel of images uint8 (B, H, W, C) read from up to two pixels away along both axes, between pixels, anew
    for each image, as COIN (AAAI 2025) does."""
    shape = tf.shape(images)
    height, width = shape[1], shape[2]
    flat = tf.reshape(tf.cast(images, tf.float32), [shape[0], height * width, shape[3]])
    away = tf.random.stateless_uniform([2, shape[0], height, width], seed, -_SHIFT, _SHIFT)
    ends = [(tf.range(height)[:, None], height - 1), (tf.range(width), width - 1)]
    sides = []
    for shift, (places, last) in zip(tf.unstack(away), ends, strict=True):
        place = tf.clip_by_value(tf.cast(places, tf.float32) + shift, 0.0, tf.cast(last, tf.float32))
        first = tf.floor(place)
        whole = tf.cast(first, tf.int32)
        sides.append([(whole, 1 - (place - first)), (tf.minimum(whole + 1, last), place - first)])
    total = tf.zeros(shape)
    for row, near_row in sides[0]:
        for column, near_column in sides[1]:
            read = tf.gather(flat, tf.reshape(row * width + column, [shape[0], -1]), batch_dims=1)
            total += tf.reshape(read, shape) * (near_row * near_column)[..., None]
    return tf.ensure_shape(tf.cast(tf.round(total), images.dtype), images.shape)


def strong_changes() -> Augment:
    """Colours in another order, a slow light across the image, brightness, contrast and saturation by up to half, a
    turn of up to 10 degrees: float images (B, H, W, C) in [0, 1]."""
    jitter = jitter_and_rotate(0.5, 10.0)

    def augment(images: Tensor, seed: Tensor) -> Tensor:
        shape = tf.shape(images)
        order = tf.argsort(tf.random.stateless_uniform([shape[0], shape[3]], tf.random.fold_in(seed, 1)), axis=1)
        images = tf.gather(images, order, batch_dims=1, axis=3)
        light = tf.random.stateless_uniform([shape[0], 3, 3, 1], tf.random.fold_in(seed, 2), 0.5, 1.5)
        images = tf.clip_by_value(images * tf.image.resize(light, shape[1:3], method="bicubic"), 0.0, 1.0)
        return jitter(images, tf.random.fold_in(seed, 3))

    return augment


def worst_of_five(eps: float) -> Method:
    """Train on that of five strong random changes of each image on which the loss is largest, as UEraser-max
    does (Qin et al. 2023), by changes of its own."""
    change = strong_changes()

    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y = batch
        logits = logits_of(model)
        worst, most = x, tf.fill(tf.shape(y), -np.inf)
        for draw in range(_DRAWS):
            changed = change(x, tf.random.fold_in(seed, draw))
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits(changed))
            larger = loss > most
            worst = tf.where(larger[:, None, None, None], changed, worst)
            most = tf.maximum(most, loss)
        return worst, y

    return Method(cross_entropy, adversary)


def adversarial(eps: float) -> Method:
    """PGD training within `eps`."""
    return pgd_training(eps=eps, alpha=eps / 2, steps=_ADVERSARY_STEPS)


PRETRAINED = Trainer(
    "a linear layer on what a network of ImageNet reads of the locked images", uses="imagenet", size=_IMAGENET_SIZE
)
TRAINERS = {
    "plain": Trainer("nothing against the lock"),
    "class_map": Trainer("plain, and knows the owner's class map: turns each answer back by it", uses="plain"),
    "jpeg10": Trainer("stores all images as JPEG of quality 10", change=lambda x, y: jpeg),
    "grey": Trainer("takes the colour out of all images", change=lambda x, y: grey),
    "pixel_shift": Trainer(
        "reads each pixel from somewhere within two pixels, anew in each batch", augment=shift_pixels
    ),
    "worst_of_five": Trainer("the worst of five strong random changes of each image", method=worst_of_five),
    "adversarial": Trainer("adversarial training, PGD within the L-inf budget", method=adversarial),
    "projection": Trainer("takes out what a linear classifier reads of the locked images", change=projection),
    "half_clean": Trainer("has clean images for half of the locked ones", clean=0.5),
    "probe": Trainer(
        "has a few clean images: a linear layer on what the plain network has learnt", uses="plain", few=True
    ),
    "pretrained": PRETRAINED,
    "searcher": Trainer(
        "tries 28 ways to change images, and has a few clean ones to choose by", uses="search", few=True
    ),
}
_TUNED = {"arch": efficientnet.NAME, "epochs": 3, "learning_rate": 0.01}
PHOTOS = {
    **{f"scratch_{size}": Trainer(f"learns from scratch at {size} pixels", size=size) for size in (32, 64, 128)},
    "scratch_64_jpeg75": Trainer(
        "the same at 64, from images stored as JPEG of quality 75", size=64, upload=reuploaded
    ),
    "scratch_64_jpeg10": Trainer(
        "the same at 64, which it stores as JPEG of quality 10", size=64, change=lambda x, y: jpeg
    ),
    "scratch_64_grey": Trainer("the same at 64, without colour", size=64, change=lambda x, y: grey),
    "pretrained": PRETRAINED,
    "pretrained_jpeg75": PRETRAINED._replace(
        does="the same, from images stored as JPEG of quality 75", upload=reuploaded
    ),
    "pretrained_half": PRETRAINED._replace(does="the same, from images of half the size", upload=halved),
    "tuned": Trainer("trains all of that network on", size=_IMAGENET_SIZE, recipe=_TUNED),
}
"""Trainers on a folder of photographs."""
_STORED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg10": jpeg,
    "jpeg30": partial(jpeg, quality=30),
    "jpeg50": partial(jpeg, quality=50),
    "blur": partial(through, view="blur"),
    "resize": partial(through, view="resize"),
    "3 bits": eight_levels,
}


class Pipeline(NamedTuple):
    """What is done to all images, one after the other, and to each batch."""

    changes: tuple[Callable[[np.ndarray], np.ndarray], ...]
    augment: Augment | None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        for change in self.changes:
            images = change(images)
        return images


PIPELINES = {
    ", ".join((*stored, *colour, *shift)) or "nothing": Pipeline(
        (*(_STORED[name] for name in stored), *(grey for _ in colour)), shift_pixels if shift else None
    )
    for stored in ((), *((name,) for name in _STORED))
    for colour in ((), ("grey",))
    for shift in ((), ("pixel shift",))
}
"""Ways to change images, by what they do."""
RUNGS = ((1, 7), (2, 3), (4, 1))
"""Of the search: for how many epochs each contender is trained, and how many of them go on: 54 epochs."""


def successive_halving(contenders: Iterable[str], score: Callable[[str, int], float]) -> tuple[str, float]:
    """The best of `contenders` and its last score: all are scored after few epochs, the better ones after more
    (Jamieson and Talwalkar 2016). `score`: contender, epochs -> what is to be large."""
    scores = dict.fromkeys(contenders, 0.0)
    for epochs, kept in RUNGS:
        scores = {contender: score(contender, epochs) for contender in scores}
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:kept]
        scores = {contender: scores[contender] for contender in best}
    return next(iter(scores.items()))


QUICK = {name: TRAINERS[name] for name in ("plain", "class_map", "jpeg10", "grey")}
PANELS: Mapping[str, Mapping[str, Trainer]] = {"quick": QUICK, "full": TRAINERS, "photos": PHOTOS}


def features(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """What the last layer of `model` reads of images, float32 (N, D)."""
    inner = keras.Model(model.inputs, model.layers[-1].input)
    return predictions.outputs(inner, images).reshape(len(images), -1)


def imagenet_features(images: np.ndarray) -> np.ndarray:
    """What EfficientNet-Lite0 with ImageNet weights reads of images uint8 (N, H, W, C), enlarged to 224 pixels: float32
    (N, 1280).

    Errors: `UserError` when its weights are not installed.
    """
    return predictions.outputs(_imagenet_reader(images.shape[1:]), images, batch_size=AT_ONCE, progress=True)


@lru_cache(1)
def _imagenet_reader(shape: tuple[int, int, int]) -> keras.Model:
    """The network of `imagenet_features` for images of one `shape`: trainers read four sets with it."""
    whole = imagenet_classifier(efficientnet.NAME, size=_IMAGENET_SIZE)
    inner = keras.Model(whole.input, whole.get_layer("features").output)
    x = seen = keras.Input(shape)
    if shape[-1] == 1:
        seen = keras.layers.Concatenate()([x] * 3)
    if shape[:2] != (_IMAGENET_SIZE, _IMAGENET_SIZE):
        seen = keras.layers.Resizing(_IMAGENET_SIZE, _IMAGENET_SIZE, interpolation="bicubic", antialias=True)(seen)
    return keras.Model(x, inner(seen))


def probe(read: Callable[[np.ndarray], np.ndarray], images: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Answers int32 to images `test` of a linear layer on what `read` makes of images, fitted to `images` with labels
    `y`."""
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return linear.fit(read(images), y).predict(read(test)).astype(np.int32)
