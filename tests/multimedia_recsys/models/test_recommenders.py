"""BPR-MF, VBPR and AMR: formulas, gradients, optimiser, adversary (F5)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from multimedia_recsys.data.interactions import interactions
from multimedia_recsys.models import recommenders
from multimedia_recsys.models.recommenders import Bpr, SparseAdagrad, amr, bpr_loss, triplets
from multimedia_recsys.models.settings import Settings

USERS, ITEMS, FEATURES = 6, 9, 5


def model(visual=3, seed=0):
    made = Bpr(USERS, ITEMS, FEATURES, 4, visual, seed)
    rng = np.random.default_rng(seed)
    for weight in made.weights:
        weight.assign(rng.normal(size=weight.shape))
    return made


def item_features(seed=1):
    return np.random.default_rng(seed).normal(size=(ITEMS, FEATURES)).astype(np.float32)


def batch():
    # Item 2 is looked up three times, user 0 twice.
    return tuple(tf.constant(v, tf.int32) for v in ([0, 1, 0, 5], [2, 2, 3, 7], [4, 8, 2, 1]))


def arrays(made):
    return {weight.name: np.asarray(weight, np.float64) for weight in made.weights}


def score(w, f, u, i):
    found = w["bias"][i] + w["user"][u] @ w["item"][i]
    if "projection" in w:
        found += w["visual_user"][u] @ (f[i] @ w["projection"]) + w["visual_bias"] @ f[i]
    return found


@pytest.mark.parametrize("visual", [0, 3])
def test_scores_and_factors_follow_the_formula(visual):
    made, f = model(visual), item_features()
    w = arrays(made)
    expected = np.array([[score(w, f, u, i) for i in range(ITEMS)] for u in range(USERS)])
    factors = made.factors(f)
    assert np.allclose(factors.users @ factors.items.T + factors.offset, expected, atol=1e-4)
    user, item, _ = batch()
    called = made(user, item, tf.gather(f, item)).numpy()
    assert np.allclose(called, [expected[u, i] for u, i in zip(user.numpy(), item.numpy(), strict=True)], atol=1e-4)


def test_the_gradient_of_bpr_against_finite_differences():
    made, f = model(), item_features()
    loss = bpr_loss(tf.constant(f), 0.3, 0.2)

    def total():
        terms, _ = loss(made, batch())
        return tf.add_n(list(terms.values()))

    w, (users, positives, negatives) = arrays(made), (v.numpy() for v in batch())

    def by_hand(w):
        value = 0.0
        for u, i, j in zip(users, positives, negatives, strict=True):
            value += np.log1p(np.exp(score(w, f, u, j) - score(w, f, u, i)))
            for item in (i, j):
                rows = (w["user"][u], w["item"][item], w["bias"][item], w["visual_user"][u])
                value += 0.5 * 0.3 * sum(np.sum(row**2) for row in rows)
        return value + 0.5 * 0.2 * (np.sum(w["projection"] ** 2) + np.sum(w["visual_bias"] ** 2))

    assert float(total()) == pytest.approx(by_hand(w), rel=1e-5)
    with tf.GradientTape() as tape:
        value = total()
    for variable, gradient in zip(
        made.trainable_variables, tape.gradient(value, [v.value for v in made.trainable_variables]), strict=True
    ):
        found = tf.convert_to_tensor(gradient).numpy()
        for place in np.ndindex(*found.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {name: array.copy() for name, array in w.items()}
                moved[variable.name][place] += step
                ends.append(by_hand(moved))
            assert found[place] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-3)


def test_amr_moves_each_feature_by_eps_along_the_gradient_of_its_row():
    """F5: the length is eps, and a feature that is looked up three times moves once, along the sum."""
    made, f = model(), item_features()
    _, adversary = amr(tf.constant(f), Settings(eps=0.7))
    user, positive, negative, of_positive, of_negative = adversary(made, batch(), tf.constant([0, 0]))
    features = tf.Variable(f)
    with tf.GradientTape() as tape:
        gap = made(user, positive, tf.gather(features, positive)) - made(user, negative, tf.gather(features, negative))
        loss = tf.reduce_sum(tf.nn.softplus(-gap))
    gradient = tf.convert_to_tensor(tape.gradient(loss, features)).numpy()
    for items, moved in ((positive, of_positive), (negative, of_negative)):
        shift = moved.numpy() - f[items.numpy()]
        assert np.allclose(np.linalg.norm(shift, axis=1), 0.7, atol=1e-6)
        unit = gradient[items.numpy()] / np.linalg.norm(gradient[items.numpy()], axis=1, keepdims=True)
        assert np.allclose(shift, 0.7 * unit, atol=1e-5)


def test_amr_without_a_budget_is_vbpr_bit_for_bit():
    """F5: eps = 0 gives the adversarial term the very value of the plain one."""
    made, f = model(), tf.constant(item_features())
    loss, adversary = amr(f, Settings(eps=0.0, lambd=1.0, l2=0.0))
    terms, _ = loss(made, adversary(made, batch(), tf.constant([0, 0])))
    plain, _ = bpr_loss(f, 0.0, 0.0)(made, batch())
    assert terms["adversarial"].numpy() == plain["bpr"].numpy()
    assert terms["bpr"].numpy() == plain["bpr"].numpy()


def test_amr_raises_the_loss():
    made, f = model(), tf.constant(item_features())
    loss, adversary = amr(f, Settings(eps=0.5, lambd=1.0))
    terms, _ = loss(made, adversary(made, batch(), tf.constant([0, 0])))
    assert float(terms["adversarial"]) > float(terms["bpr"])


def test_the_sparse_optimiser_gives_the_numbers_of_the_dense_one():
    f = tf.constant(item_features())
    found = []
    for optimizer in (SparseAdagrad(0.1), keras.optimizers.Adagrad(0.1)):
        made, loss = model(), bpr_loss(f, 0.1, 0.1)
        optimizer.build(made.trainable_variables)
        for _ in range(5):
            with tf.GradientTape() as tape:
                total = tf.add_n(list(loss(made, batch())[0].values()))
            optimizer.apply(tape.gradient(total, made.trainable_variables), made.trainable_variables)
        found.append(arrays(made))
    for name, array in found[0].items():
        assert np.allclose(array, found[1][name], atol=1e-6), name


def feedback(seed=0):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(50, size=400), rng.integers(30, size=400)
    return interactions(user, item, np.full(50, -1), items=30)


def test_triplets_hold_every_interaction_once_with_an_item_the_user_does_not_have():
    found = feedback()
    have = set(zip(found.user().tolist(), found.item.tolist(), strict=True))
    user, positive, negative = (
        np.concatenate(v) for v in zip(*triplets(found, 64, [0, 0]).as_numpy_iterator(), strict=True)
    )
    assert sorted(zip(user.tolist(), positive.tolist(), strict=True)) == sorted(have)
    assert not have & set(zip(user.tolist(), negative.tolist(), strict=True))
    other = np.concatenate([batch[2] for batch in triplets(found, 64, [0, 1]).as_numpy_iterator()])
    assert not np.array_equal(negative, other)


def test_triplets_end_for_a_user_who_has_everything():
    found = interactions(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 1]), np.array([-1, -1]), items=3)
    assert sum(len(batch[0]) for batch in triplets(found, 2, [0, 0]).as_numpy_iterator()) == 4


@pytest.fixture
def uncompiled():
    """For a single step, to compile it would be nearly all of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("kind", ["bprmf", "vbpr", "amr"])
def test_one_step_lowers_the_loss_and_repeats_itself(uncompiled, kind):
    """One batch of all interactions; AMR has its plain half before and one adversarial step after it."""
    found = feedback()
    f = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    settings = Settings(factors=4, visual_factors=2, epochs=2 if kind == "amr" else 1, batch_size=400, eps=0.2)
    made, again = (recommenders.fit(kind, found, f, settings, seed=3) for _ in range(2))
    for one, other in zip(made.weights, again.weights, strict=True):
        assert np.array_equal(one, other)
    start = Bpr(50, 30, 4, 4, 0 if kind == "bprmf" else 2, 3)
    for one, other in zip(made.trainable_variables, start.trainable_variables, strict=True):
        assert not np.array_equal(one, other), one.name
    (batch,) = triplets(found, 400, [3, 0])
    before, after = (float(bpr_loss(tf.constant(f), 0.0, 0.0)(of, batch)[0]["bpr"]) for of in (start, made))
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bprmf", "vbpr", "amr"])
def test_training_ranks_what_users_have_and_repeats_itself(kind):
    rng = np.random.default_rng(0)
    # Users 0-24 like items 0-14, the others 15-29; images show which half an item is of.
    user = rng.integers(50, size=600)
    item = rng.integers(15, size=600) + 15 * (user >= 25)
    found = interactions(user, item, np.full(50, -1), items=30)
    f = np.concatenate([np.eye(2)[np.arange(30) // 15], 0.1 * rng.normal(size=(30, 2))], axis=1).astype(np.float32)
    settings = Settings(factors=4, visual_factors=2, epochs=12, batch_size=64, learning_rate=0.2, eps=0.2)
    made = recommenders.fit(kind, found, f, settings, seed=3)
    factors = made.factors(f)
    scores = factors.users @ factors.items.T + factors.offset
    own = np.where((np.arange(50) < 25)[:, None], np.arange(30) < 15, np.arange(30) >= 15)
    assert scores[own].mean() > scores[~own].mean() + 0.5
    again = recommenders.fit(kind, found, f, settings, seed=3)
    for one, other in zip(made.weights, again.weights, strict=True):
        assert np.array_equal(one, other)


def test_the_mean_score_grows_along_its_direction():
    made, f = model(), item_features()
    along = recommenders.mean_score_direction(made)
    moved = f + 0.1 * along / np.linalg.norm(along)
    before, after = (made.factors(v) for v in (f, moved))
    gain = [(v.users @ v.items.T + v.offset).mean(axis=0) for v in (before, after)]
    assert np.allclose(gain[1] - gain[0], 0.1 * np.linalg.norm(along), atol=1e-4)
    assert len(recommenders.mean_score_direction(model(visual=0))) == 0
