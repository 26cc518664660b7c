"""Recommenders that know what items look like, and two that do not: popularity, BPR-MF, VBPR, AMR.

All but the first are trained by BPR (Rendle et al. 2009): of a triplet (user, item that the user has, item that he has
not) the former is to score higher. Whatever they are, what they answer with is a matrix of `Factors`.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.attacks import Inputs, Objective, in_ball, search
from common.training import loop
from common.training.batches import Batch
from common.training.loop import Adversary, Loss, Terms
from multimedia_recsys.data.interactions import Interactions
from multimedia_recsys.models.settings import Kind, Settings

Tensor = tf.Tensor
_PACKAGE = "multimedia_recsys"
# Steps that go without Python in between: each takes a millisecond.
_STEPS = 32


class Factors(NamedTuple):
    """Scores of all items for all users, as a product: `users` @ `items`.T + `offset`.

    float32 (U, k), (N, k) and (N,). Terms of a user alone do not change his ranking and are left out.
    """

    users: np.ndarray
    items: np.ndarray
    offset: np.ndarray


@keras.saving.register_keras_serializable(_PACKAGE)
class Bpr(keras.Model):
    """y_ui = b_i + g_u . g_i + theta_u . (E f_i) + beta . f_i (He & McAuley 2016, VBPR, equation 4).

    Without visual factors it is BPR-MF. alpha and b_u are in the paper's formula too; no ranking and no gradient of
    BPR depends on them. `call` takes users (B,), items (B,) and the items' features (B, D), and gives (B,).
    """

    def __init__(
        self, users: int, items: int, features: int, factors: int, visual_factors: int, seed: int, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._config = {
            "users": users,
            "items": items,
            "features": features,
            "factors": factors,
            "visual_factors": visual_factors,
            "seed": seed,
        }
        seeds = np.random.default_rng(seed).integers(2**31, size=4).tolist()

        def weight(name: str, shape: tuple[int, ...], stddev: float, place: int) -> keras.Variable:
            initializer = keras.initializers.RandomNormal(stddev=stddev, seed=seeds[place])
            return self.add_weight(shape, initializer=initializer, name=name)

        self.user = weight("user", (users, factors), 0.1, 0)
        self.item = weight("item", (items, factors), 0.1, 1)
        self.bias = self.add_weight((items,), initializer="zeros", name="bias")
        self.visual = bool(visual_factors)
        if self.visual:
            self.visual_user = weight("visual_user", (users, visual_factors), 0.1, 2)
            self.projection = weight("projection", (features, visual_factors), features**-0.5, 3)
            self.visual_bias = self.add_weight((features,), initializer="zeros", name="visual_bias")
        self.built = True

    def call(self, users, items, features):
        return self.parts(users, items, features)[0]

    def parts(self, users, items, features):
        """Scores (B,), and per triplet side the squared norms (B,) of the vectors that are looked up for it."""
        take = keras.ops.take
        user, item, bias = take(self.user, users, axis=0), take(self.item, items, axis=0), take(self.bias, items)
        score = bias + keras.ops.sum(user * item, axis=-1)
        squares = keras.ops.sum(user**2, axis=-1) + keras.ops.sum(item**2, axis=-1) + bias**2
        if self.visual:
            visual_user = take(self.visual_user, users, axis=0)
            extracted = keras.ops.matmul(features, self.projection)
            score += keras.ops.sum(visual_user * extracted, axis=-1) + keras.ops.matmul(features, self.visual_bias)
            squares += keras.ops.sum(visual_user**2, axis=-1)
        return score, squares

    def factors(self, features: np.ndarray) -> Factors:
        """What it makes of items that look like `features` (N, D)."""
        user, item, bias = (np.asarray(w) for w in (self.user, self.item, self.bias))
        if not self.visual:
            return Factors(user, item, bias)
        extracted = features @ np.asarray(self.projection)
        return Factors(
            np.concatenate([user, np.asarray(self.visual_user)], axis=1),
            np.concatenate([item, extracted], axis=1),
            bias + features @ np.asarray(self.visual_bias),
        )

    def get_config(self):
        return {**super().get_config(), **self._config}


class SparseAdagrad(keras.optimizers.Adagrad):
    """Adagrad that touches only the rows that a batch has looked up: the same numbers, without a pass over all."""

    def update_step(self, gradient, variable, learning_rate):
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        rate = tf.cast(learning_rate, gradient.dtype)
        accumulator = self._accumulators[self._get_variable_index(variable)].value
        accumulator.scatter_add(tf.IndexedSlices(tf.square(gradient.values), gradient.indices))
        pace = tf.sqrt(tf.gather(accumulator, gradient.indices) + self.epsilon)
        variable.scatter_sub(tf.IndexedSlices(rate * gradient.values / pace, gradient.indices))


def popularity(feedback: Interactions) -> Factors:
    """Every user is recommended what most have."""
    counts = feedback.popularity().astype(np.float32)
    return Factors(np.zeros((feedback.users, 1), np.float32), np.zeros((feedback.items, 1), np.float32), counts)


def fit(
    kind: Kind,
    feedback: Interactions,
    features: np.ndarray,
    settings: Settings,
    *,
    seed: int,
    checkpoint_folder=None,
    verbose: bool = False,
    callbacks=(),
) -> Bpr:
    """A BPR-MF, VBPR or AMR trained on `feedback` and the items' `features` float32 (N, D), scaled to [-1, 1].

    AMR is VBPR for the first half of the epochs and adversarial for the second (Tang et al. 2020, section 3.3).
    """
    visual = 0 if kind == "bprmf" else settings.visual_factors
    model = Bpr(feedback.users, feedback.items, features.shape[1], settings.factors, visual, seed)
    optimizer = SparseAdagrad(settings.learning_rate)
    with tf.device("CPU"):
        item_features = tf.constant(features)
    plain = bpr_loss(item_features, settings.l2, settings.l2_visual)
    phases: list[tuple[int, Loss, Adversary | None]] = [(settings.epochs, plain, None)]
    if kind == "amr":
        half = settings.epochs // 2
        phases = [
            (half, plain, None),
            (settings.epochs, *amr(item_features, settings)),
        ]
    for place, (until, loss, adversary) in enumerate(phases):
        first = phases[place - 1][0] if place else 0
        loop.train(
            model,
            lambda epoch, first=first: triplets(feedback, settings.batch_size, [seed, first + epoch]),
            loss,
            optimizer,
            epochs=until - first,
            adversary=adversary,
            checkpoint_folder=checkpoint_folder and checkpoint_folder / str(place),
            resume=True,
            seed=seed,
            steps_per_call=_STEPS,
            verbose=verbose,
            callbacks=callbacks,
        )
    return model


def triplets(feedback: Interactions, batch_size: int, seed: list[int]) -> tf.data.Dataset:
    """Batches (user, positive, negative), int32 (B,) each: all training interactions in an order of their own, each
    with an item drawn uniformly from those that its user does not have. The last batch is smaller."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(feedback.item))
    owner = feedback.user()
    user, positive = owner[order], feedback.item[order]
    known = owner.astype(np.int64) * feedback.items + feedback.item
    negative = rng.integers(feedback.items, size=len(order), dtype=np.int32)
    todo = np.arange(len(order))
    # A user who has everything has no negative: he keeps what he drew, and his triplets teach nothing.
    full = np.diff(feedback.start) == feedback.items
    while len(todo):
        pair = user[todo].astype(np.int64) * feedback.items + negative[todo]
        place = np.minimum(np.searchsorted(known, pair), len(known) - 1)
        todo = todo[(known[place] == pair) & ~full[user[todo]]]
        negative[todo] = rng.integers(feedback.items, size=len(todo), dtype=np.int32)
    return tf.data.Dataset.from_tensor_slices((user, positive, negative)).batch(batch_size).prefetch(4)


def bpr_loss(item_features: Tensor, l2_rows: float, l2_visual: float) -> Loss:
    """Sum over triplets of -log sigmoid(y_ui - y_uj), and L2 of what they look up; `item_features` (N, D)."""

    def loss(model: Bpr, batch: Batch) -> tuple[Terms, Terms]:
        user, positive, negative, *_ = batch
        terms, ahead = _bpr_terms(
            model,
            user,
            positive,
            negative,
            tf.gather(item_features, positive),
            tf.gather(item_features, negative),
            l2_rows,
            l2_visual,
        )
        return terms, {"ranked": tf.reduce_mean(tf.cast(ahead > 0, tf.float32))}

    return loss


def _bpr_of_triplets(model: Bpr, inputs: Inputs) -> Objective:
    """BPR's loss of triplets, whose items are the rows `first` and `second` of the features."""
    user, first = inputs["user"], inputs["first"]

    def objective(features: Tensor) -> tuple[Tensor, Tensor]:
        gap = model(user, inputs["positive"], tf.gather(features, first)) - model(
            user, inputs["negative"], tf.gather(features, inputs["second"])
        )
        # The sum over rows is the loss; to whose row a triplet is counted changes no gradient.
        loss = tf.math.unsorted_segment_sum(tf.nn.softplus(-gap), first, tf.shape(features)[0])
        return loss, tf.zeros_like(loss, tf.bool)

    return objective


FEATURES = in_ball(_bpr_of_triplets, "l2", classes=False)
"""AMR's adversary: features along the gradient of BPR's loss. Rows that triplets share depend on one another."""


def amr(item_features: Tensor, settings: Settings) -> tuple[Loss, Adversary]:
    """Adversarial multimedia recommendation (Tang et al. 2020, equations 7 to 10): the loss of BPR, and `lambd` times
    that of triplets whose features are moved by `eps` (L2) along the gradient of BPR's loss.

    A feature that a batch looks up more than once has one gradient, the sum, and moves once.
    """

    def adversary(model: Bpr, batch: Batch, seed: Tensor) -> Batch:
        user, positive, negative = batch
        items, place = tf.unique(tf.concat([positive, negative], axis=0))
        count = tf.shape(user)[0]
        of_positive, of_negative = place[:count], place[count:]

        triplets = {
            "user": user,
            "positive": positive,
            "negative": negative,
            "first": of_positive,
            "second": of_negative,
        }
        budget = {"eps": settings.eps, "alpha": settings.eps, "low": -np.inf, "high": np.inf, "steps": 1}
        moved = search(FEATURES, model, {"x": tf.gather(item_features, items), **budget, **triplets}).x
        return user, positive, negative, tf.gather(moved, of_positive), tf.gather(moved, of_negative)

    plain = bpr_loss(item_features, settings.l2, settings.l2_visual)

    def loss(model: Bpr, batch: Batch) -> tuple[Terms, Terms]:
        terms, watched = plain(model, batch)
        user, positive, negative, of_positive, of_negative = batch
        moved, _ = _bpr_terms(model, user, positive, negative, of_positive, of_negative, 0.0, 0.0)
        return {**terms, "adversarial": settings.lambd * moved["bpr"]}, watched

    return loss, adversary


def _bpr_terms(
    model: Bpr,
    user: Tensor,
    positive: Tensor,
    negative: Tensor,
    of_positive: Tensor,
    of_negative: Tensor,
    *decay: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms of BPR's loss, and by how much the positive is ahead (B,)."""
    l2_rows, l2_visual = decay
    better, squares = model.parts(user, positive, of_positive)
    worse, other_squares = model.parts(user, negative, of_negative)
    # Sums, as published: with means Adagrad's first accumulator would drown the gradient of a row.
    terms = {"bpr": tf.reduce_sum(tf.nn.softplus(worse - better))}
    if l2_rows:
        terms["l2"] = 0.5 * l2_rows * tf.reduce_sum(squares + other_squares)
    if l2_visual and model.visual:
        terms["l2_visual"] = l2_visual * (tf.nn.l2_loss(model.projection) + tf.nn.l2_loss(model.visual_bias))
    return terms, better - worse


def mean_score_direction(model: Bpr) -> np.ndarray:
    """Gradient of the mean score over users with respect to the features, float32 (D,)."""
    if not model.visual:
        return np.zeros(0, np.float32)
    mean = np.asarray(model.visual_user).mean(axis=0)
    return (np.asarray(model.projection) @ mean + np.asarray(model.visual_bias)).astype(np.float32)
