"""Threat models against double precision: exact projections, random starts and the draws behind them."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from common.attacks import l1, l2, linf, tensors
from tests.helpers.attack_oracles import SHAPES, check_inside, column, norms, project

SPACES = {"linf": linf, "l2": l2, "l1": l1}
case = st.tuples(
    st.sampled_from(sorted(SHAPES)),
    st.integers(1, 4),
    st.floats(-2, 1),
    st.floats(-2, 0.5),
    st.booleans(),
    st.integers(0, 2**31),
)


def draw(rank: int, batch: int, spread: float, budget: float, masked: bool, seed: int):
    """A clean batch, a point to bring back, budgets per example, a box of its own and a mask."""
    rng = np.random.default_rng(seed)
    shape = (batch, *SHAPES[rank])
    low, high = np.float32(rng.choice([0.0, -0.7, 0.3])), np.float32(rng.choice([1.0, 1.9]))
    x0 = (low + (high - low) * rng.random(shape, dtype=np.float32)).clip(low, high)
    x = (x0 + rng.normal(size=shape) * 10**spread * rng.choice([1, 0.1], shape)).astype(np.float32)
    eps = (10**budget * rng.uniform(0.5, 2, batch)).astype(np.float32)
    mask = (rng.random(shape) < 0.7).astype(np.float32) if masked else None
    return x0, x, eps, low, high, mask


@pytest.mark.parametrize("norm", SPACES)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(case=case)
def test_a12_projection_is_the_nearest_point(norm, case):
    """A12 (and A1-A4): <= 1e-5 from the double-precision solution on 200 random cases, inside ball, box and mask."""
    x0, x, eps, low, high, mask = draw(*case)
    found = SPACES[norm](tf.constant(x0), eps, low, high, mask).project(tf.constant(x)).numpy()
    check_inside(found, x0, column(eps, x0) if norm == "linf" else eps, norm, mask, low, high)
    free = np.ones(x0.shape, bool) if mask is None else mask != 0
    for i in range(len(x0)):
        clean = x0[i].astype(np.float64)
        ends = np.where(free[i], low, clean), np.where(free[i], high, clean)
        wanted = project(x[i].astype(np.float64), clean, float(eps[i]), *ends, norm)
        np.testing.assert_allclose(found[i], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", SPACES)
def test_projection_meets_the_variational_inequality(norm):
    """(x - p) . (q - p) <= 0 for every q of the space: nearest by definition, whatever formula found p."""
    x0, x, eps, low, high, mask = draw(1, 4, 0.0, -0.3, True, 9)
    space = SPACES[norm](tf.constant(x0), eps, low, high, mask)
    p = space.project(tf.constant(x)).numpy().astype(np.float64)
    for seed in range(50):
        q = space.random_point(tensors.example_seeds(tensors.seed_pair(seed), tf.range(4))).numpy()
        assert (((x - p) * (q - p)).sum(1) <= 1e-5).all()


@pytest.mark.parametrize("norm", SPACES)
def test_projection_leaves_a_point_of_the_space(norm):
    x0, x, eps, low, high, mask = draw(2, 3, -1.0, 0.5, True, 2)
    space = SPACES[norm](tf.constant(x0), eps, low, high, mask)
    once = space.project(tf.constant(x))
    np.testing.assert_allclose(space.project(once), once, atol=1e-6)
    np.testing.assert_array_equal(space.project(tf.constant(x0)), x0)


@pytest.mark.parametrize("norm", SPACES)
def test_projection_treats_every_row_alone(norm):
    """A13: the search ends with the slowest row of a batch, and no other row's answer shows it."""
    x0, x, eps, low, high, _ = draw(1, 4, 0.5, -0.5, False, 6)
    eps[0] = 1e3
    together = SPACES[norm](tf.constant(x0), eps, low, high).project(tf.constant(x)).numpy()
    for i in range(4):
        row = slice(i, i + 1)
        alone = SPACES[norm](tf.constant(x0[row]), eps[row], low, high).project(tf.constant(x[row]))
        np.testing.assert_array_equal(alone, together[row])


@pytest.mark.parametrize("norm", SPACES)
def test_an_unbounded_box_leaves_the_ball_alone(norm):
    x0, x, eps, *_ = draw(1, 4, 0.0, -0.5, False, 4)
    found = SPACES[norm](tf.constant(x0), eps, -np.inf, np.inf).project(tf.constant(x)).numpy()
    check_inside(found, x0, column(eps, x0) if norm == "linf" else eps, norm, low=-np.inf, high=np.inf)
    if norm == "l2":
        np.testing.assert_allclose(found, x0 + (x - x0) * column(eps / norms(x - x0, "l2"), x), atol=1e-6)


def test_a_clean_point_outside_the_box_stays_a_point_of_the_space():
    x0 = np.array([[-0.5, 0.5, 1.5]], np.float32)
    for space in SPACES.values():
        np.testing.assert_array_equal(space(tf.constant(x0), 0.1, mask=np.float32([[0, 0, 0]])).project(x0 + 1.0), x0)
        np.testing.assert_array_equal(space(tf.constant(x0), 0.1).project(tf.constant(x0)), x0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(case=case)
def test_a5_budgets_per_coordinate(case):
    """A5: every coordinate within its own budget."""
    x0, x, _, low, high, mask = draw(*case)
    eps = np.random.default_rng(case[-1]).uniform(0, 0.5, x0.shape[1:]).astype(np.float32)[None]
    space = linf(tf.constant(x0), eps, low, high, mask)
    check_inside(space.project(tf.constant(x)), x0, eps, "linf", mask, low, high)
    start = space.random_point(tensors.example_seeds(tensors.seed_pair(case[-1]), tf.range(len(x0))))
    check_inside(start, x0, eps, "linf", mask, low, high)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_ball_has_one_radius_per_example(norm):
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="shape"):
        SPACES[norm](tf.fill((2, 3), 0.5), np.full((1, 3), 0.1, np.float32))


def starts(norm: str, n: int, dimensions: int, eps: float, mask=None) -> np.ndarray:
    x0 = tf.fill((n, dimensions), 0.5)
    seeds = tensors.example_seeds(tensors.seed_pair(3), tf.range(n))
    return SPACES[norm](tf.constant(x0), eps, mask=mask).random_point(seeds).numpy() - 0.5


@pytest.mark.parametrize("norm", SPACES)
@pytest.mark.parametrize("masked", [False, True])
def test_random_starts_are_uniform_in_the_ball(norm, masked):
    """(size / eps)^n is uniform, signs are balanced, coordinates uncorrelated; a mask lowers n and moves nothing."""
    n, dimensions = 20_000, 5
    mask = np.float32([[1, 0, 1, 0, 1]]) if masked else None
    delta = starts(norm, n, dimensions, 0.4, mask)
    if masked:
        assert (delta[:, 1::2] == 0).all()
        delta = delta[:, ::2]
    share = (norms(delta, norm) / 0.4) ** delta.shape[1]
    quantiles = np.quantile(share, [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.015)
    np.testing.assert_allclose((delta > 0).mean(0), 0.5, atol=0.015)
    correlation = np.corrcoef(np.sign(delta).T) - np.eye(delta.shape[1])
    np.testing.assert_allclose(correlation, 0, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(delta[:-1, 0], delta[1:, 0])[0, 1], 0, atol=0.03)


def test_random_starts_in_many_dimensions_have_signs_in_balance():
    """A known library's L1 start is positive in 82 % of its coordinates."""
    for norm in SPACES:
        delta = starts(norm, 8, 3072, 0.4)
        assert abs((delta > 0).mean() - 0.5) < 0.02
        assert np.isfinite(delta).all()


def test_draws_are_uniform_and_never_an_end():
    seeds = tensors.example_seeds(tensors.seed_pair(0), tf.range(256))
    u = tensors.uniform(seeds, (64, 32), 0.0, 1.0).numpy().astype(np.float64)
    assert u.min() > 0
    assert u.max() < 1
    counts = np.histogram(u, 256, (0, 1))[0]
    expected = u.size / 256
    # Chi-square with 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert 165 < ((counts - expected) ** 2 / expected).sum() < 345
    centred = u - 0.5
    for pair in (
        (centred[:-1], centred[1:]),
        (centred[:, :-1], centred[:, 1:]),
        (centred[:, :, :-1], centred[:, :, 1:]),
        (centred[0::2], centred[1::2]),
    ):
        assert abs((pair[0] * pair[1]).mean() * 12) < 0.01
    assert len(np.unique(u.reshape(256, -1)[:, 0])) == 256


def test_normal_draws_have_the_moments():
    z = tensors.normal(tensors.example_seeds(tensors.seed_pair(1), tf.range(64)), (4096,)).numpy()
    moments = [(z**k).mean() for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.05)
    assert np.isfinite(z).all()


@pytest.mark.parametrize("other", [1, -1, 2**31, 2**32, 2**40, -(2**31)])
def test_seeds_differ_in_every_bit(other):
    draw = lambda seed: tensors.uniform(  # noqa: E731
        tensors.example_seeds(tensors.seed_pair(seed), tf.range(4)), (8,)
    ).numpy()
    np.testing.assert_array_equal(draw(other), draw(other))
    assert not (draw(other) == draw(0)).any()


def test_draws_belong_to_the_example():
    """A13, C6: row i is the same in any batch, and no two rows are alike."""
    seed = tensors.seed_pair(7)
    together = tensors.normal(tensors.example_seeds(seed, tf.range(6)), (5, 2)).numpy()
    order = np.array([4, 1, 5], np.int32)
    np.testing.assert_array_equal(tensors.normal(tensors.example_seeds(seed, order), (5, 2)), together[order])
    assert len(np.unique(together)) == together.size
