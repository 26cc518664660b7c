"""Adversarial training: the papers' losses, examples inside their budget, and models that withstand more."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import attacks
from common.errors import UserError
from common.training import batches, loop
from common.training.methods import Method, make_method, pgd_training, standard_training
from tests.helpers.training_toys import data, network, sgd, weights

EPS = 0.08
METHODS = {name: make_method(name, eps=EPS, alpha=0.03, steps=4, beta=4.0) for name in ("pgd", "fast", "trades")}


def linear(dimensions=6, classes=3, seed=0):
    """Logits x W + b as a Keras model, and W and b in double precision."""
    draw = np.random.default_rng(seed)
    kernel, bias = draw.normal(size=(dimensions, classes)), draw.normal(size=classes)
    model = keras.Sequential([keras.Input((dimensions,)), keras.layers.Dense(classes)])
    model.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])
    return model, kernel, bias


def points(n=20, dimensions=6, classes=3, seed=1):
    """Points that are farther than the budget from the ends of the box, and labels."""
    draw = np.random.default_rng(seed)
    x = draw.uniform(0.2, 0.8, (n, dimensions)).astype(np.float32)
    return x, draw.integers(0, classes, n).astype(np.int32)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def crafting(method: Method, model):
    """What the adversary hands to the loss, as a function of images, labels and a seed, inside a graph as in a training
    step."""
    run = tf.function(lambda x, y, seed: method.adversary(model, (x, y), seed))
    return lambda x, y, seed=0: [tensor.numpy() for tensor in run(x, y, tf.constant([seed, 0]))]


def craft(method: Method, model, x, y):
    return crafting(method, model)(x, y)


def test_a_method_by_name_takes_what_it_knows():
    assert make_method("standard", eps=EPS, steps=4).adversary is None
    model, _, _ = linear()
    x, y = points()
    by_name = craft(make_method("pgd", eps=EPS, steps=5), model, x, y)[0]
    np.testing.assert_array_equal(by_name, craft(pgd_training(eps=EPS, alpha=0.4 * EPS, steps=5), model, x, y)[0])
    with pytest.raises(UserError, match="magic: unknown training method; expected one of standard, fast, pgd, trades"):
        make_method("magic", eps=EPS, steps=4)


def total(method: Method, model, batch):
    return float(sum(method.loss(model, batch)[0].values()))


@pytest.mark.parametrize("name", ["pgd", "fast"])
def test_the_loss_is_the_cross_entropy_of_the_adversarial_examples_alone(name):
    """Madry et al. 2018, equation 2.1: the clean image has no part in it."""
    model, kernel, bias = linear()
    x, y = points()
    batch = craft(METHODS[name], model, x, y)
    assert len(batch) == 2 and (np.abs(batch[0] - x).max(axis=1) > EPS / 2).all() and (batch[1] == y).all()
    rows = log_softmax(batch[0].astype(np.float64) @ kernel + bias)
    assert total(METHODS[name], model, batch) == pytest.approx(-rows[np.arange(len(y)), y].mean(), rel=1e-5)


def test_the_trades_loss_is_the_clean_cross_entropy_and_beta_times_the_divergence():
    """Zhang et al. 2019, equation 5, with KL(answer to the clean image || answer to the moved one)."""
    model, kernel, bias = linear()
    x, y = points()
    images, labels, moved = craft(METHODS["trades"], model, x, y)
    assert (images == x).all() and (labels == y).all()
    clean, attacked = (log_softmax(z.astype(np.float64) @ kernel + bias) for z in (x, moved))
    divergence = (np.exp(clean) * (clean - attacked)).sum(axis=1).mean()
    terms, watched = METHODS["trades"].loss(model, (images, labels, moved))
    assert float(terms["cross_entropy"]) == pytest.approx(-clean[np.arange(len(y)), y].mean(), rel=1e-5)
    assert float(terms["divergence"]) == pytest.approx(4.0 * divergence, rel=1e-4) and divergence > 0.001
    assert float(watched["accuracy"]) == pytest.approx((clean.argmax(axis=1) == y).mean())


def test_the_inner_maximum_is_found_where_it_is_known():
    """Two classes and a linear model: the worst point of the ball is a corner, for cross-entropy and divergence alike,
    and the step is plain gradient descent on the loss there."""
    model, kernel, bias = linear(classes=2)
    x, y = points(classes=2)
    slope = kernel[:, 1] - kernel[:, 0]
    margin = (2 * y - 1) * (x @ slope + bias[1] - bias[0])
    pgd = pgd_training(eps=EPS, alpha=0.05, steps=4)
    worst = np.log1p(np.exp(-(margin - EPS * np.abs(slope).sum()))).mean()
    assert total(pgd, model, craft(pgd, model, x, y)) == pytest.approx(worst, rel=1e-4)
    moved = craft(METHODS["trades"], model, x, y)[2]
    np.testing.assert_allclose(np.abs(moved - x), EPS, atol=1e-6)
    side = np.sign((moved - x) * slope)
    assert (side == side[:, :1]).all()
    # One step of 1.25 budgets from anywhere in the ball: three in eight start too far back to reach the corner.
    reached = (craft(METHODS["fast"], model, x, y)[0] - x) * -np.sign(slope) * (2 * y - 1)[:, None]
    assert reached.min() >= 0.25 * EPS - 1e-6 and np.mean(reached > EPS - 1e-6) == pytest.approx(5 / 8, abs=0.15)

    worst_x = (x - EPS * (2 * y - 1)[:, None] * np.sign(slope)).astype(np.float64)
    errors = np.exp(log_softmax(worst_x @ kernel + bias)) - np.eye(2)[y]
    descended = kernel - 0.1 * worst_x.T @ errors / len(x)
    loop.train(
        model,
        lambda epoch: tf.data.Dataset.from_tensors((x, y)),
        pgd.loss,
        keras.optimizers.SGD(0.1),
        epochs=1,
        adversary=pgd.adversary,
        verbose=False,
    )
    np.testing.assert_allclose(model.layers[0].kernel.numpy(), descended, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_examples_stay_in_the_budget_and_the_box_and_differ_by_seed(name):
    x, y = data()
    x = np.concatenate([x / np.float32(255), np.zeros((4, 8, 8, 3), np.float32), np.ones((4, 8, 8, 3), np.float32)])
    y = np.concatenate([y, y[:8]])
    run = crafting(METHODS[name], network(norm=True))
    first, again, other = (run(x, y, seed)[0 if name != "trades" else 2] for seed in (0, 0, 1))
    for moved in (first, other):
        assert np.abs(moved - x).max() <= EPS + 1e-6 and moved.min() >= 0 and moved.max() <= 1
        assert moved.dtype == np.float32 and np.abs(moved - x).max() > EPS * 0.99
    assert (first == again).all()
    # Four steps along signs may end in the same corners; a single step cannot.
    assert name != "fast" or (first != other).any()


@pytest.mark.parametrize("name", METHODS)
def test_a16_crafting_changes_neither_weights_nor_batch_norm_averages(name):
    model = network(norm=True, dropout=0.3)
    before = weights(model)
    x, y = data()
    craft(METHODS[name], model, x / np.float32(255), y)
    assert all((a == b).all() for a, b in zip(before, weights(model), strict=True))


def test_a16_averages_move_in_a_step_as_they_would_without_the_attack():
    def far(model, batch, seed):
        x, y = batch
        attacks.pgd(model, x * 0.0 + 1.0, y, eps=0.3, alpha=0.1, steps=3, random_start=False)
        return x, y

    plain, attacked = trained(network(norm=True), standard_training()), network(norm=True)
    trained(attacked, Method(loop.cross_entropy, far))
    assert all((a == b).all() for a, b in zip(weights(plain), weights(attacked), strict=True))


def trained(model, method, epochs=2, optimizer=None, **options):
    loop.train(
        model,
        batches.batches(*data(), batch_size=16, seed=1),
        method.loss,
        optimizer or sgd(),
        epochs=epochs,
        adversary=method.adversary,
        verbose=False,
        **options,
    )
    return model


def faint_and_loud(n, seed):
    """A hundred faint coordinates tell the class for certain and drown in the budget; a loud one tells it mostly."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, n).astype(np.int32)
    side = 2.0 * y - 1
    faint = 0.5 + 0.04 * side[:, None] + 0.08 * draw.normal(size=(n, 100))
    loud = 0.5 + 0.3 * side * np.where(draw.uniform(size=n) < 0.9, 1, -1)
    return np.clip(np.concatenate([faint, loud[:, None]], axis=1), 0, 1).astype(np.float32), y


@functools.cache
def robust_accuracy(name):
    """After training by the method, the share of new points that is right under PGD."""
    method = METHODS.get(name, standard_training())
    model = keras.Sequential([keras.Input((101,)), keras.layers.Dense(2, kernel_initializer="zeros")])
    epochs = batches.batches(*faint_and_loud(512, seed=7), batch_size=64, seed=1)
    loop.train(model, epochs, method.loss, sgd(0.1), epochs=20, adversary=method.adversary, verbose=False)
    x, y = faint_and_loud(256, seed=8)
    moved = attacks.pgd(model, x, y, eps=EPS, alpha=0.02, steps=10, restarts=2, seed=3)
    return float(np.mean(model(moved).numpy().argmax(1) == y))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_each_method_makes_the_model_harder_to_attack(name):
    assert robust_accuracy(name) > robust_accuracy("standard") + 0.5


@contextlib.contextmanager
def half(precision):
    """A network with dropout and its optimizer, both in half precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model, optimizer = network(dropout=0.2, norm=True), sgd()
        if precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        yield model, optimizer
        assert {str(v.dtype) for v in model.trainable_variables} == {"float32"}
    finally:
        keras.config.set_dtype_policy(before)


half_precision = pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])


@half_precision
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_with_dropout(name, precision):
    """In a step, examples stay float32 and in the budget, and so do the weights."""
    x, y = data()
    x = x / np.float32(255)

    def loss(model, batch):
        moved = batch[0 if name != "trades" else 2]
        assert moved.dtype == tf.float32
        terms, watched = METHODS[name].loss(model, batch)
        far = tf.abs(moved - x)
        return terms, {
            **watched,
            "far": tf.reduce_max(far),
            "moved": tf.reduce_mean(tf.cast(far > EPS / 2, tf.float32)),
        }

    with half(precision) as (model, optimizer):
        logs = loop.compiled_step(model, loss, optimizer, adversary=METHODS[name].adversary)((x, y))
        assert logs["far"] <= EPS + 1e-6 and np.isfinite(logs["loss"])
        # Gradients too small for half precision would leave the examples where they start.
        assert logs["moved"] > 0.5


@pytest.mark.slow
@half_precision
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_learns(name, precision):
    with half(precision) as (model, optimizer):
        history = loop.train(
            model,
            batches.batches(*data(), batch_size=16, seed=1),
            METHODS[name].loss,
            optimizer,
            epochs=4,
            adversary=METHODS[name].adversary,
            verbose=False,
        )
        assert np.isfinite([logs["loss"] for logs in history]).all() and history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_trades_moves_what_the_model_is_sure_of(precision):
    """The divergence has a gradient of some 1e-9 there, nothing in half precision, and only its sign is wanted."""
    layers = [
        keras.layers.Dense(units, dtype=kind, kernel_initializer=keras.initializers.GlorotUniform(units))
        for units, kind in ((8, precision), (3, "float32"))
    ]
    model = keras.Sequential([keras.Input((6,)), *layers])
    layers[1].bias.assign([12.0, 0.0, 0.0])
    x, y = points()
    moved = craft(METHODS["trades"], model, x, y)[2]
    assert (np.abs(moved - x).max(axis=1) > EPS * 0.99).all()


@pytest.mark.parametrize(
    ("n", "epochs"), [(64, 1), pytest.param(512, 2, marks=pytest.mark.slow)], ids=["a step", "two epochs"]
)
def test_xla_trains_to_the_same_weights(n, epochs):
    """A dense model, and no random start: XLA draws other numbers from the same seed."""

    def adversary(model, batch, seed):
        x, y = batch
        return attacks.pgd(model, x, y, eps=EPS, alpha=0.03, steps=3, random_start=False), y

    x, y = faint_and_loud(n, seed=7)

    def fitted(jit_compile):
        hidden = keras.layers.Dense(8, activation="tanh", kernel_initializer=keras.initializers.GlorotNormal(0))
        last = keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotNormal(1))
        model = keras.Sequential([keras.Input((101,)), hidden, last])
        history = loop.train(
            model,
            batches.batches(x, y, batch_size=64, seed=1),
            loop.cross_entropy,
            sgd(),
            epochs=epochs,
            adversary=adversary,
            weight_decay=1e-3,
            jit_compile=jit_compile,
            verbose=False,
        )
        return model, history

    (plain, expected), (compiled, history) = fitted(False), fitted(True)
    for ours, theirs in zip(weights(compiled), weights(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert history[-1]["loss"] == pytest.approx(expected[-1]["loss"], abs=1e-4)
