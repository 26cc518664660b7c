"""Defences that are broken, or are not, small and in Keras: those of a course on attacking defences
(google-research/selfstudy-adversarial-robustness) as their descriptions have them, four more, and controls.

Each comes with the `substitute` that somebody who has read the defence would attack instead: an attack written by hand
for this one defence.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from common.attacks import RandomModel, bpda
from common.training import batches, loop
from common.training.methods import make_method

if TYPE_CHECKING:
    from common.datasets import Arrays
    from common.evaluation.views import Mechanism

Model = Callable[[tf.Tensor], tf.Tensor]

BINS, VOTERS, NEIGHBOURS, STORED = 12, 5, 10, 500


class Planted(NamedTuple):
    """A defence: its `model`, x -> logits or scores, a `detector` if it has one, the `mechanism` that hides it from
    gradients, and the `substitute` that an attack by hand climbs on, with a `penalty`, x -> (B,), to keep below 0 where
    there is a detector. `reach`: its radius, over that of the others."""

    model: Model
    mechanism: "Mechanism"
    substitute: Model
    detector: Model | None = None
    penalty: Model | None = None
    reach: float = 1.0


class Bench:
    """What defences are made of: images, labels, how long to train, and the networks that several share."""

    def __init__(self, data: "Arrays", *, epochs: int, eps: float, width: int = 16, seed: int = 0) -> None:
        self.data, self.epochs, self.eps, self.width, self.seed = data, epochs, eps, width, seed
        self.x = data.x_train.astype(np.float32) / 255
        self.y = np.asarray(data.y_train, np.int32)
        self.shape, self.classes = self.x.shape[1:], data.classes

    def network(self, *, activation: Callable[[], keras.Layer] = keras.layers.ReLU, first: list | None = None, seed=0):
        """Four convolutions and two dense layers, `first` before them."""
        keras.utils.set_random_seed(self.seed + seed)
        images = keras.Input(self.shape)
        x = images
        for layer in first or []:
            x = layer(x)
        for width in (self.width, 2 * self.width):
            for _ in range(2):
                x = activation()(keras.layers.Conv2D(width, 3, padding="same")(x))
            x = keras.layers.MaxPooling2D()(x)
        x = keras.layers.Flatten()(x)
        x = activation()(keras.layers.Dense(64)(x))
        return keras.Model(images, keras.layers.Dense(self.classes)(x))

    def train(self, model: keras.Model, *, method="standard", x=None, y=None, loss: Callable | None = None):
        """`model` after so many epochs on the images, plainly or by an adversarial method; this begins with the weights
        of the plain network, for from nothing PGD and FGSM of a random start may stay at chance in so few steps."""
        if method != "standard":
            model.set_weights(self.plain.get_weights())
        x, y = self.x if x is None else x, self.y if y is None else y
        size = min(64, len(x))
        rate = loop.learning_rate("cosine", 0.05, epochs=self.epochs, steps_per_epoch=len(x) // size, warmup_epochs=1)
        made = make_method(method, eps=self.eps if method != "standard" else 0.0, steps=5)
        loop.train(
            model,
            batches.batches(x, y, batch_size=size, seed=self.seed),
            loss or made.loss,
            keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, clipnorm=1.0),
            epochs=self.epochs,
            seed=self.seed,
            adversary=made.adversary,
            verbose=False,
        )
        return model

    @functools.cached_property
    def plain(self) -> keras.Model:
        """The network without a defence."""
        return self.train(self.network())

    @functools.cached_property
    def features(self) -> keras.Model:
        """The plain network up to its last layer."""
        return keras.Model(self.plain.inputs, self.plain.layers[-1].input)


class Blur(keras.Layer):
    """A mean over 3 x 3 pixels."""

    def call(self, x):
        return ops.average_pool(x, 3, 1, padding="same")


class Jump(keras.Layer):
    """A rectifier that jumps by 1 at every half of its input."""

    def call(self, x):
        return ops.relu(x) + 0.5 * ops.floor(2.0 * ops.relu(x))


class SlopedJump(Jump):
    """`Jump` with the slope of the line through it, for its attacker."""

    def call(self, x):
        return bpda(super().call, lambda x: 2.0 * tf.nn.relu(x))(x)


class Thermometer(keras.Layer):
    """Which of so many levels a pixel is above, for each of them."""

    def above(self, x, softness: float = 0.0):
        """All levels of a pixel side by side."""
        levels = (np.arange(BINS, dtype=np.float32) + 0.5) / BINS
        above = ops.expand_dims(x, -1) - levels
        found = ops.sigmoid(above / softness) if softness else ops.cast(above > 0, "float32")
        return ops.reshape(found, (-1, *x.shape[1:-1], x.shape[-1] * BINS))

    def call(self, x):
        return self.above(x)


class SlopedThermometer(Thermometer):
    """`Thermometer` with the slope of soft levels, for its attacker."""

    def call(self, x):
        return bpda(self.above, lambda x: self.above(x, softness=0.05))(x)


class Rounded(keras.Layer):
    """Eight grey levels, and no slope at all."""

    def call(self, x):
        return ops.stop_gradient(ops.round(x * 7) / 7)


class Dropped(keras.Layer):
    """Drops a part of the neurons, in use too."""

    def __init__(self, rate: float = 0.4, seed: int = 0, **options):
        super().__init__(**options)
        self.rate, self.draws = rate, keras.random.SeedGenerator(seed)

    def call(self, x):
        return keras.random.dropout(x, self.rate, seed=self.draws)


class Shaken(keras.Layer):
    """Shifts the images by up to two pixels, and adds noise."""

    def __init__(self, seed: int = 0, **options):
        super().__init__(**options)
        self.draws = keras.random.SeedGenerator(seed)

    def call(self, x):
        padded = tf.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        count, moved = tf.shape(x)[0], padded
        for axis in (1, 2):
            # Each image by another shift.
            place = keras.random.randint((count, 1), 0, 5, seed=self.draws) + tf.range(x.shape[axis])
            moved = tf.gather(moved, place, axis=axis, batch_dims=1) if axis == 1 else _columns(moved, place)
        moved = tf.ensure_shape(moved, x.shape)
        return moved + 0.05 * keras.random.normal(tf.shape(moved), seed=self.draws)


def _columns(x: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    return tf.transpose(tf.gather(tf.transpose(x, (0, 2, 1, 3)), place, axis=1, batch_dims=1), (0, 2, 1, 3))


class Hidden(keras.Layer):
    """A softmax that a look at the layers does not tell."""

    def call(self, x):
        return ops.softmax(x)


class OneAgainstAll(keras.Layer):
    """Answers of binary classifiers, as shares."""

    def call(self, x):
        yes = ops.sigmoid(x)
        return yes / ops.sum(yes, axis=1, keepdims=True)


class Votes(keras.Layer):
    """How many of several classifiers, (B, voters x classes) logits, choose each class."""

    def __init__(self, classes: int, **options):
        super().__init__(**options)
        self.classes = classes

    def call(self, x):
        each = ops.reshape(x, (-1, VOTERS, self.classes))
        return ops.sum(ops.one_hot(ops.argmax(each, axis=-1), self.classes), axis=1)


class Neighbours(keras.Layer):
    """How many of the nearest stored features are of each class."""

    def __init__(self, features, labels, classes: int, **options):
        super().__init__(**options)
        self.stored = self.add_weight(shape=features.shape, trainable=False, name="stored")
        self.stored.assign(features)
        self.kinds = self.add_weight(shape=(len(labels), classes), trainable=False, name="kinds")
        self.kinds.assign(np.eye(classes, dtype=np.float32)[labels])

    def distances(self, x):
        """To each of the stored features, squared."""
        return (
            ops.sum(x**2, axis=1, keepdims=True) - 2 * x @ ops.transpose(self.stored) + ops.sum(self.stored**2, axis=1)
        )

    def call(self, x):
        _, nearest = ops.top_k(-self.distances(x), NEIGHBOURS)
        return ops.sum(ops.take(self.kinds, nearest, axis=0), axis=1)

    def soft(self, x):
        """Weighed by distance, with a slope."""
        far = self.distances(x)
        return ops.log(ops.softmax(-far / (0.1 * ops.mean(far, axis=1, keepdims=True)), axis=1) @ self.kinds + 1e-12)


class Rippled(keras.Layer):
    """Logits with ripples so short that every step crosses many: their slope leads nowhere."""

    def __init__(self, weights, **options):
        super().__init__(**options)
        self.weights_of = weights

    def call(self, inputs):
        x, logits = inputs
        flat = ops.reshape(x, (-1, int(np.prod(x.shape[1:]))))
        return logits + 0.3 * ops.sin(400.0 * flat @ self.weights_of)


def _on(bench: Bench, model: keras.Model, *layers: keras.Layer, before: bool = False) -> keras.Model:
    """`model` with layers before it or after it."""
    images = keras.Input(bench.shape)
    x = images
    for layer in layers if before else []:
        x = layer(x)
    x = model(x)
    for layer in [] if before else layers:
        x = layer(x)
    return keras.Model(images, x)


def blur(bench: Bench) -> Planted:
    """Smoothed images."""
    model = _on(bench, bench.plain, Blur(), before=True)
    return Planted(model, "none", model)


def temperature(bench: Bench) -> Planted:
    """Logits times 100, as training at that temperature leaves them."""
    return Planted(_on(bench, bench.plain, keras.layers.Rescaling(100.0)), "scaled logits", bench.plain)


def merged(bench: Bench) -> Planted:
    """Binary classifiers, one for each class."""

    def loss(model, batch):
        z = model(batch[0], training=True)
        wanted = tf.one_hot(batch[1], bench.classes)
        found = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(wanted, z), axis=1)
        return {"cross_entropy": tf.reduce_mean(found)}, {}

    inner = bench.train(bench.network(seed=1), loss=loss)
    return Planted(_on(bench, inner, OneAgainstAll()), "scaled logits", inner)


def smoothing(bench: Bench) -> Planted:
    """Labels of 0.6 in place of 1."""

    def loss(model, batch):
        z = model(batch[0], training=True)
        wanted = 0.6 * tf.one_hot(batch[1], bench.classes) + 0.4 / bench.classes
        return {"cross_entropy": tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(wanted, z))}, {}

    model = bench.train(bench.network(seed=2), loss=loss)
    return Planted(model, "none", model)


def jump(bench: Bench) -> Planted:
    """Activations with jumps, trained in."""
    model = bench.train(bench.network(activation=Jump, seed=3))
    smooth = bench.network(activation=SlopedJump, seed=3)
    smooth.set_weights(model.get_weights())
    return Planted(model, "non-differentiable", smooth)


def vote(bench: Bench) -> Planted:
    """The majority of several networks."""
    members = [bench.train(bench.network(seed=10 + number)) for number in range(VOTERS)]
    images = keras.Input(bench.shape)
    logits = keras.layers.Concatenate()([member(images) for member in members])
    mean = lambda x: sum(tf.nn.log_softmax(member(x, training=False)) for member in members)  # noqa: E731
    return Planted(keras.Model(images, Votes(bench.classes)(logits)), "non-differentiable", mean)


def discretised(bench: Bench) -> Planted:
    """Thermometer codes of pixels, trained in."""
    inner_shape = (*bench.shape[:-1], bench.shape[-1] * BINS)
    model = bench.train(bench.network(first=[Thermometer()], seed=4))
    soft = bench.network(first=[SlopedThermometer()], seed=4)
    assert model.layers[1].output.shape[1:] == inner_shape
    soft.set_weights(model.get_weights())
    return Planted(model, "non-differentiable", soft)


def random_neurons(bench: Bench) -> Planted:
    """Dropped neurons, in use as in training."""
    model = bench.train(bench.network(activation=lambda: keras.Sequential([keras.layers.ReLU(), Dropped(0.2)]), seed=5))
    return Planted(model, "random", _eot(model))


def random_transform(bench: Bench) -> Planted:
    """Shifted and noisy images."""
    model = bench.train(bench.network(first=[Shaken()], seed=6))
    return Planted(model, "random", _eot(model))


def fingerprints(bench: Bench) -> Planted:
    """A trapdoor for each class: images with its patch are taught to be of it, and what has features as those have is
    rejected (at a rate of false positives of 5 %)."""
    rng = np.random.default_rng(bench.seed)
    patches = rng.random((bench.classes, 5, 5, bench.shape[-1]), np.float32)

    def stamped(x: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[:, -6:-1, -6:-1] = 0.5 * x[:, -6:-1, -6:-1] + 0.5 * patches[kinds]
        return x

    count = len(bench.x) // 4
    kinds = rng.integers(bench.classes, size=count).astype(np.int32)
    x = np.concatenate([bench.x, stamped(bench.x[:count], kinds)])
    order = rng.permutation(len(x))
    model = bench.train(bench.network(seed=7), x=x[order], y=np.concatenate([bench.y, kinds])[order])
    features = keras.Model(model.inputs, model.layers[-1].input)

    def unit(x: tf.Tensor) -> tf.Tensor:
        return tf.math.l2_normalize(features(x, training=False), axis=1)

    signatures = []
    for kind in range(bench.classes):
        some = bench.x[bench.y != kind][:100]
        marks = unit(tf.constant(stamped(some, np.full(len(some), kind)))) - unit(tf.constant(some))
        signatures.append(tf.math.l2_normalize(tf.reduce_mean(marks, axis=0), axis=0))
    signatures = tf.stack(signatures)
    centres = tf.stack(
        [tf.reduce_mean(unit(tf.constant(bench.x[bench.y == kind][:100])), 0) for kind in range(bench.classes)]
    )

    def likeness(x: tf.Tensor) -> tf.Tensor:
        """To the signature of the class that is answered."""
        answer = tf.argmax(model(x, training=False), axis=1)
        return tf.reduce_sum((unit(x) - tf.gather(centres, answer)) * tf.gather(signatures, answer), axis=1)

    at = float(np.quantile(likeness(tf.constant(bench.x[:1000])).numpy(), 0.95))
    return Planted(model, "rejecting", model, lambda x: likeness(x) - at, lambda x: likeness(x) - at)


def neighbours(bench: Bench) -> Planted:
    """The nearest training images, by the plain network's features."""
    stored = bench.features(bench.x[:STORED], training=False)
    layer = Neighbours(stored, bench.y[:STORED], bench.classes)
    model = keras.Model(bench.features.inputs, layer(bench.features.output))
    return Planted(model, "non-differentiable", lambda x: layer.soft(bench.features(x, training=False)))


def adversarial(bench: Bench) -> Planted:
    """PGD training (Madry et al. 2018)."""
    model = bench.train(bench.network(seed=8), method="pgd")
    return Planted(model, "none", model)


def stopped(bench: Bench) -> Planted:
    """Rounded images, whose gradient is stopped."""
    return Planted(_on(bench, bench.plain, Rounded(), before=True), "non-differentiable", bench.plain)


def softmax(bench: Bench) -> Planted:
    """A softmax in a layer of its own, on logits ten times as large."""
    model = _on(bench, bench.plain, keras.layers.Rescaling(10.0), Hidden())
    return Planted(model, "scaled logits", bench.plain)


def rippled(bench: Bench) -> Planted:
    """Ripples on the logits."""
    rng = np.random.default_rng(bench.seed)
    size = int(np.prod(bench.shape))
    weights = (rng.normal(size=(size, bench.classes)) / np.sqrt(size)).astype(np.float32)
    images = keras.Input(bench.shape)
    model = keras.Model(images, Rippled(weights)([images, bench.plain(images)]))
    return Planted(model, "misleading gradients", bench.plain)


def squeezed(bench: Bench) -> Planted:
    """Noisy images and small logits (Kannan et al. 2018), which look better under PGD than they are (Mosbach et al.
    2018): where it stands out, at twice the radius."""

    def loss(model, batch):
        z = model(batch[0] + 0.4 * tf.random.normal(tf.shape(batch[0])), training=True)
        right = tf.nn.sparse_softmax_cross_entropy_with_logits(batch[1], z)
        return {
            "cross_entropy": tf.reduce_mean(right),
            "squeeze": 0.02 * tf.reduce_mean(tf.reduce_sum(z**2, axis=1)),
        }, {}

    model = bench.train(bench.network(seed=21), loss=loss)
    return Planted(model, "misleading gradients", model, reach=2.0)


def plain(bench: Bench) -> Planted:
    """No defence."""
    return Planted(bench.plain, "none", bench.plain)


def trades(bench: Bench) -> Planted:
    """TRADES (Zhang et al. 2019)."""
    model = bench.train(bench.network(seed=9), method="trades")
    return Planted(model, "none", model)


def fast(bench: Bench) -> Planted:
    """FGSM from a random start (Wong et al. 2020)."""
    model = bench.train(bench.network(seed=20), method="fast")
    return Planted(model, "none", model)


COURSE: dict[str, Callable[[Bench], Planted]] = {
    "blur": blur,
    "temperature": temperature,
    "merged_binary": merged,
    "label_smoothing": smoothing,
    "jump_activation": jump,
    "vote": vote,
    "discretisation": discretised,
    "random_neurons": random_neurons,
    "random_transform": random_transform,
    "fingerprints": fingerprints,
    "nearest_neighbours": neighbours,
    "adversarial_training": adversarial,
}
MORE = {"gradient_stopper": stopped, "softmax_on_top": softmax, "logit_squeezing": squeezed, "ripples": rippled}
CONTROLS = {"plain": plain, "trades": trades, "fast": fast}
DEFENCES = COURSE | MORE | CONTROLS


def _eot(model: keras.Model) -> RandomModel:
    return RandomModel(lambda x, seeds: model(x, training=False))
