"""Labels and inputs, in whatever they come: the right number or one clear line."""

from functools import partial

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from common import attacks
from common.evaluation import gradients, predictions, robustness
from common.training import batches, loop
from common.training.methods import pgd_training, standard_training, trades_training
from tests.helpers.misread_toys import CLASSES, LOGITS, PGD, X, Y, built, fitted, plain, refusal

ORDER = np.random.default_rng(1).permutation(40)
LABELS = {
    "array": Y,
    "column": Y[:, None],
    "list": Y.tolist(),
    "whole floats": Y.astype(float),
    "8 bits": Y.astype(np.uint8),
    "series": pd.Series(Y, index=ORDER),
    "nullable": pd.Series(Y, index=ORDER, dtype="Int64"),
    "categories": pd.Series(pd.Categorical(Y)),
    "frame": pd.DataFrame({"label": Y}, index=ORDER),
    "tensor": tf.constant(Y),
    "column tensor": tf.constant(Y[:, None], tf.float32),
}
NO_LABELS = {
    "text": (np.array(["cat"] * 40), "return_inverse"),
    "text in a table": (pd.Series(["cat"] * 40), "return_inverse"),
    "digits as text": (Y.astype(str).astype(object), "return_inverse"),
    "fractions": (Y + 0.7, "whole class numbers"),
    "not a number": (np.where(Y == 0, np.nan, Y), "whole class numbers"),
    "one-hot": (np.eye(CLASSES)[Y], "argmax"),
    "from 1": (Y + 1, "subtract 1"),
    "negative": (Y - 1, "labels must be 0 to 2"),
    "too few": (Y[:-1], "per example"),
    "too many": (np.append(Y, 0), "per example"),
    "missing": (pd.Series([None, *Y[1:]], dtype="Int64"), "class numbers"),
}
USES = {
    "pgd": lambda y, x=X: attacks.pgd(LOGITS, x, y, **PGD).numpy(),
    "ddn": lambda y, x=X: attacks.ddn(LOGITS, x, y, steps=2).numpy(),
    "attack_dataset": lambda y, x=X: attacks.attack_dataset(partial(attacks.pgd, LOGITS, **PGD), x, y, batch_size=15).x,
    "refilled": lambda y, x=X: (
        attacks.attack_dataset(partial(attacks.pgd, LOGITS, stop=True, **PGD), x, y, batch_size=15).x
    ),
    "accuracy": lambda y, x=X: predictions.accuracy(LOGITS, x, y),
    "robustness": lambda y, x=X: robustness.robustness(LOGITS, x, y, lambda x, y: x).robust,
    "gradients": lambda y, x=X: gradients.gradient_rows(LOGITS, x, y).zero,
}


@pytest.mark.parametrize("use", USES)
def test_labels_may_come_as_they_are(use):
    wanted = USES[use](Y)
    for form, labels in LABELS.items():
        np.testing.assert_array_equal(USES[use](labels), wanted, err_msg=form)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("form", NO_LABELS)
def test_what_are_no_labels_is_refused_on_one_line(form, use):
    labels, message = NO_LABELS[form]
    with pytest.raises(ValueError, match=message) as caught:
        USES[use](labels)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)


@pytest.mark.parametrize("use", [*USES, "predict", "outputs"])
def test_inputs_may_come_as_they_are(use):
    run = {
        "predict": lambda y, x=X: predictions.predict(LOGITS, x),
        "outputs": lambda y, x=X: predictions.outputs(LOGITS, x),
    } | USES
    wanted = run[use](Y)
    for x in (pd.DataFrame(X, index=ORDER), tf.constant(X), X.tolist(), X.astype(np.float64)):
        np.testing.assert_allclose(run[use](Y, x), wanted, atol=1e-6)
    for bad in (pd.DataFrame({"a": ["x"] * 40}), [[1.0], [1.0, 2.0]], np.ma.masked_greater(X, 0.5), X.astype(str)):
        with pytest.raises(ValueError, match=r"^x: "):
            run[use](Y, bad)


def test_8_bit_images_are_judged_in_the_unit_interval():
    grey = np.rint(255 * X).astype(np.uint8)
    found = robustness.robustness(LOGITS, grey, Y, partial(attacks.fgsm, LOGITS, eps=0.1))
    wanted = robustness.robustness(LOGITS, grey / np.float32(255), Y, partial(attacks.fgsm, LOGITS, eps=0.1))
    for part in ("x", "before", "after"):
        np.testing.assert_array_equal(getattr(found, part), getattr(wanted, part))


def test_training_takes_the_same_labels():
    def batch(x, labels):
        return next(iter(batches.batches(x, labels, batch_size=20, seed=0)(0)))

    wanted = batch(X, Y)
    for form, labels in LABELS.items():
        for ours, theirs in zip(batch(pd.DataFrame(X, index=ORDER), labels), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=form)


@pytest.mark.parametrize("form", NO_LABELS)
def test_training_refuses_what_are_no_labels(form):
    labels, message = NO_LABELS[form]
    with pytest.raises(ValueError, match=message) as caught:
        fitted(built(plain), y=labels)
    assert "\n" not in str(caught.value)


def test_batches_of_ones_own_are_looked_at_too():
    def run(labels, x=X, method=None):
        data = tf.data.Dataset.from_tensor_slices((x, labels)).batch(20)
        method = method or standard_training()
        model = built(plain)
        loop.train(
            model,
            lambda epoch: data,
            method.loss,
            keras.optimizers.SGD(0.1),
            adversary=method.adversary,
            epochs=1,
            verbose=False,
        )
        return model.get_weights()

    wanted = run(Y)
    for labels in (Y[:, None], Y.astype(np.float32), Y.astype(np.uint8)):
        for ours, theirs in zip(run(labels), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert "argmax" in refusal(lambda: run(np.eye(CLASSES)[Y]))
    assert refusal(lambda: run(Y + 1)).endswith("received 1 to 3")
    assert "whole" in refusal(lambda: run(Y + 0.5))
    assert "text" in refusal(lambda: run(Y.astype(str)))
    method = pgd_training(**PGD)
    assert "argmax" in refusal(lambda: run(np.eye(CLASSES)[Y], method=method))
    assert "divide 8-bit images by 255" in refusal(lambda: run(Y, 255 * X, method))
    with pytest.raises(ValueError, match="Divide 8-bit images by 255"):
        trades_training(**PGD).adversary(LOGITS, (tf.constant(255 * X), tf.constant(Y)), tf.constant([0, 0]))


def test_grey_levels_are_no_floats_to_train_on():
    for x in (255 * X, np.rint(255 * X).astype(np.int64)):
        assert "Divide by 255" in refusal(lambda: batches.batches(x, Y, batch_size=20, seed=0))  # noqa: B023
        batches.batches(x, Y, batch_size=20, seed=0, high=255)
    assert "not finite" in refusal(lambda: batches.batches(X * np.nan, Y, batch_size=20, seed=0))
    # Standardised numbers are no images.
    batches.batches(100 * (X - 0.5), Y, batch_size=20, seed=0)
