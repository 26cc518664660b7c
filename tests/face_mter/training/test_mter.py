"""The method: a search that stays in its ball, a triplet term against NumPy, pairs of different people."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from common.training import loop
from face_mter.data.pair_batches import pair_epochs, pairs_of
from face_mter.models.networks import build, embedder
from face_mter.training.mter import distance, feature_target_search, method, triplet
from tests.helpers.steep import classifier

SETTINGS = {"radius": 0.2, "sigma": 0.05, "rounds": 8, "threshold": 0.1}


def tiny(loss_type="softmax"):
    return build("small", (8, 8, 1), 4, emb_size=6, loss_type=loss_type, scale=16.0)


@pytest.fixture(scope="module")
def model():
    """What is only searched: the search is traced once."""
    return tiny()


def pairs(count=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(2, count, 8, 8, 1)).astype(np.float32)
    y = np.stack([rng.integers(0, 2, count), rng.integers(2, 4, count)]).astype(np.int32)
    return tuple(map(tf.constant, (*x, *y)))


def cosine(model, a, b):
    a, b = (np.asarray(embedder(model)(v, training=False), np.float64) for v in (a, b))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("radius", [0.0, 0.07, 0.2, 1.0])
def test_f1_the_search_stays_in_ball_and_box_and_comes_nearer(model, radius):
    batch = pairs()
    *kept, moved = feature_target_search(**SETTINGS | {"radius": radius})(model, batch, tf.constant([0, 0]))
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(kept, batch, strict=True))
    shift = np.abs(moved.numpy() - batch[0].numpy())
    assert shift.max() <= radius + 1e-6 and moved.numpy().min() >= 0 and moved.numpy().max() <= 1
    before, after = cosine(model, batch[0], batch[1]), cosine(model, moved, batch[1])
    # A source that was near enough stays where it was; the others come nearer.
    rested = before > 1 - SETTINGS["threshold"]
    assert (shift.max(axis=(1, 2, 3))[rested] == 0).all()
    assert radius == 0 or (after > before)[~rested].mean() > 0.9


def test_each_example_rests_when_it_is_near_enough(model):
    """The original goes on until the farthest of the batch is there."""
    source, _, *labels = pairs()
    target = tf.concat([source[:6] + 0.002, 1.0 - source[6:]], axis=0)
    moved = feature_target_search(**SETTINGS)(model, (source, target, *labels), tf.constant([0, 0]))[-1]
    shift = np.abs(moved.numpy() - source.numpy()).max(axis=(1, 2, 3))
    near = cosine(model, source, target) > 0.9
    assert near[:6].all() and not near[6:].all() and (shift[near] == 0).all() and (shift[~near] > 0).all()


def test_the_search_uses_inference_statistics_and_leaves_them(model):
    batch = pairs()
    before = [v.numpy().copy() for v in model.variables]
    feature_target_search(**SETTINGS)(model, batch, tf.constant([0, 0]))
    assert all((a == b.numpy()).all() for a, b in zip(before, model.variables, strict=True))


def test_triplet_against_numpy():
    rng = np.random.default_rng(0)
    moved, source, target = (rng.normal(size=(50, 6)).astype(np.float32) for _ in range(3))
    m, s, t = (v / np.linalg.norm(v, axis=1)[:, None] for v in (moved, source, target))
    gap = np.linalg.norm(m - s, axis=1) - np.linalg.norm(m - t, axis=1) + 0.2
    assert 0.2 < np.mean(gap > 0) < 0.8
    assert float(triplet(moved, source, target, 0.2)) == pytest.approx(np.maximum(gap, 0).mean(), abs=1e-5)


def test_slopes_are_finite_where_embeddings_coincide():
    same = tf.Variable(np.ones((3, 4), np.float32))
    other = tf.Variable(-np.ones((3, 4), np.float32))
    with tf.GradientTape() as tape:
        value = triplet(same + 0.0, same + 0.0, other, 5.0) + tf.reduce_sum(distance(same, same))
    assert all(np.isfinite(slope).all() for slope in tape.gradient(value, [same, other]))


@pytest.mark.parametrize("loss_type", ["softmax", "arcface"])
def test_what_each_method_adds_up(loss_type):
    """Fact sheet 1.5: moved images are classified by `adv` alone, and only `mter` has the regulariser."""
    model, batch = tiny(loss_type), pairs()
    moved = tf.clip_by_value(batch[0] + 0.1, 0, 1)
    whole = {
        name: method(name, loss_type=loss_type, scale=16.0, margin=0.3, weight=2.0, alpha=0.5).loss(
            model, (*batch, *([moved] if name != "none" else []))
        )[0]
        for name in ("none", "adv", "mter")
    }
    assert set(whole["none"]) == set(whole["adv"]) == {"cross_entropy"}
    assert set(whole["mter"]) == {"cross_entropy", "triplet"}
    for name in ("adv", "mter"):
        images = tf.concat([batch[0], batch[1], moved], axis=0)
        parts = keras.Model(model.inputs, [embedder(model).output, model.output])
        e, z = (v.numpy().astype(np.float64) for v in parts(images, training=False))
        y = np.concatenate([batch[2], batch[3], batch[2]])
        if loss_type == "arcface":
            rows = np.arange(len(y))
            z[rows, y] = 16 * np.cos(np.arccos(np.clip(z[rows, y] / 16, -1, 1)) + 0.3)
        entropy = np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
        wanted = entropy.mean() if name == "adv" else entropy[:24].mean()
        inference = method(name, loss_type=loss_type, scale=16.0, margin=0.3, weight=2.0, alpha=0.5)
        found, _ = inference.loss(_in_inference(model), (*batch, moved))
        assert float(found["cross_entropy"]) == pytest.approx(wanted, abs=1e-3)
        if name == "mter":
            e /= np.linalg.norm(e, axis=1)[:, None]
            s, t, m = e[:12], e[12:24], e[24:]
            gap = np.linalg.norm(m - s, axis=1) - np.linalg.norm(m - t, axis=1) + 0.5
            assert float(found["triplet"]) == pytest.approx(2 * np.maximum(gap, 0).mean(), abs=1e-4)


def _in_inference(model):
    """The same network with dropout and batch statistics off, whatever it is asked for."""
    frozen = keras.models.clone_model(model)
    frozen.set_weights(model.get_weights())
    for layer in frozen.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return frozen


def test_pairs_never_share_a_person_and_change_with_the_epoch():
    y = np.repeat(np.arange(7), (3, 9, 4, 6, 5, 2, 8))
    first = [pairs_of(y, [5, epoch]) for epoch in range(20)]
    for rows in first:
        assert not set(y[rows[0]]) & set(y[rows[1]])
        assert len(np.unique(rows)) == rows.size and rows.shape[1] >= 10
    assert len({rows.tobytes() for rows in first}) == 20
    assert (pairs_of(y, [5, 3]) == first[3]).all()
    # Every person is a source in some epoch and a target in another.
    assert all(set(np.concatenate([y[rows[side]] for rows in first])) == set(range(7)) for side in range(2))


def test_epochs_hold_those_images_and_repeat():
    y = np.repeat(np.arange(6), 5)
    x = np.arange(30 * 4, dtype=np.uint8).reshape(30, 2, 2, 1)
    epochs = pair_epochs(x, y, batch_size=4, seed=1)
    batches = list(epochs(2).as_numpy_iterator())
    assert len(batches) == 3
    for source, target, y_source, y_target in batches:
        for images, labels in ((source, y_source), (target, y_target)):
            assert images.shape == (4, 2, 2, 1) and images.dtype == np.float32 and labels.dtype == np.int32
            row = np.rint(images[:, 0, 0, 0] * 255).astype(int) // 4
            assert (y[row] == labels).all()
        assert (y_source != y_target).all()
    again = list(epochs(2).as_numpy_iterator())
    assert all((a == b).all() for u, v in zip(batches, again, strict=True) for a, b in zip(u, v, strict=True))


def test_too_few_people_or_images_are_refused():
    x = np.zeros((6, 8, 8, 1), np.uint8)
    with pytest.raises(UserError, match="two people"):
        pair_epochs(x, np.zeros(6, int), batch_size=1, seed=0)
    with pytest.raises(UserError, match="--batch-size: 4 pairs; half of the people have 3 images only"):
        pair_epochs(x, np.repeat([0, 1], 3), batch_size=4, seed=0)(0)


def training_of(name):
    """A way to train, and people whose images tell them apart."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 12)
    x = np.clip(y[:, None, None, None] * 50 + rng.integers(0, 30, (48, 8, 8, 1)), 0, 255).astype(np.uint8)
    way = method(
        name, loss_type="arcface", scale=16.0, margin=0.2, adversary=feature_target_search(**SETTINGS | {"rounds": 2})
    )
    return way, pair_epochs(x, y, batch_size=8, seed=0)


@pytest.mark.parametrize("name", ["none", "adv", "mter"])
def test_a_step_lowers_its_loss(name):
    model, (way, epochs) = tiny("arcface"), training_of(name)
    model.get_layer("dropout").rate = 0.0
    batch = next(iter(epochs(0)))
    step = loop.compiled_step(model, way.loss, keras.optimizers.SGD(0.01), adversary=way.adversary)
    logs = [{key: float(value) for key, value in step(batch).items()} for _ in range(2)]
    terms = {"none": set(), "adv": set(), "mter": {"cross_entropy", "triplet"}}[name]
    assert logs[0].keys() == {"loss", "accuracy"} | terms
    assert np.isfinite(list(logs[0].values())).all() and logs[1]["loss"] < logs[0]["loss"]
    if name == "mter":
        assert logs[0]["loss"] == pytest.approx(logs[0]["cross_entropy"] + logs[0]["triplet"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "adv", "mter"])
def test_a_training_lowers_loss_and_names_people(name):
    way, epochs = training_of(name)
    history = loop.train(
        tiny("arcface"),
        epochs,
        way.loss,
        keras.optimizers.SGD(0.05, momentum=0.9),
        epochs=12,
        adversary=way.adversary,
        verbose=False,
    )
    assert history[-1]["loss"] < 0.8 * history[0]["loss"] and history[-1]["accuracy"] > history[0]["accuracy"]


def test_the_search_stays_finite_where_slopes_are_infinite():
    model, x = classifier((12, 12, 3), 6), np.random.default_rng(0).random((8, 12, 12, 3), np.float32)
    x[:3, :6] = 0
    adversary = feature_target_search(radius=0.05, sigma=0.01, rounds=4, threshold=0.0)
    labels = tf.zeros([4], tf.int32)
    moved = adversary(model, (tf.constant(x[:4]), tf.constant(x[4:]), labels, labels), tf.zeros([2], tf.int32))[-1]
    assert np.isfinite(moved).all() and 0 < np.abs(moved - x[:4]).max() <= 0.05 + 1e-6
