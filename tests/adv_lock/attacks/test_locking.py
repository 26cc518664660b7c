"""Class maps, mixing and the rounding that keeps the budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adv_lock.attacks import mixing
from adv_lock.attacks.class_maps import MAPS_NEEDED, PAPER_MAPS, class_maps, inverse
from common.errors import UserError


@given(classes=st.integers(2, 40), seed=st.integers(0, 10_000), data=st.data())
def test_maps_are_disjoint_derangements(classes, seed, data):
    count = data.draw(st.integers(1, min(4, classes - 1)))
    maps = class_maps("seeded", classes, count, seed)
    assert (np.sort(maps, axis=1) == np.arange(classes)).all()
    assert (maps != np.arange(classes)).all()
    assert all((maps[a] != maps[b]).all() for a in range(count) for b in range(a))
    # The first map is the same however many are asked for: attacks towards it are shared between methods.
    assert (class_maps("seeded", classes, 1, seed)[0] == maps[0]).all()
    assert (inverse(maps[0])[maps[0]] == np.arange(classes)).all()


def test_map_count_is_limited_by_the_classes():
    with pytest.raises(UserError, match=r"at least 5 classes, the data have 4; choose basic, mixup, horiz"):
        class_maps("seeded", 4, MAPS_NEEDED["mixandcat"], 0)
    with pytest.raises(UserError, match="one class only"):
        class_maps("seeded", 1, 1, 0)
    with pytest.raises(UserError, match="for 10 classes, the data have 7"):
        class_maps("paper", 7, 1, 0)


def test_paper_maps_have_the_fixed_points_that_the_sheet_names():
    fixed = [np.flatnonzero(row == np.arange(10)).tolist() for row in class_maps("paper", 10, 4, 0)]
    assert fixed == [[], [9], [], [7]]
    assert (np.sort(PAPER_MAPS, axis=1) == np.arange(10)).all()


def test_mixing_takes_the_columns_and_weights_of_the_paper():
    images = [np.full((2, 4, 6, 3), value, np.float32) for value in (0.1, 0.2, 0.4, 0.8)]
    assert (mixing.mix("basic", images, alpha=0.5, lambd=0.5) == images[0]).all()
    np.testing.assert_allclose(mixing.mix("mixup", images, alpha=0.5, lambd=0.25), 0.25 * 0.1 + 0.75 * 0.2, rtol=1e-6)
    horiz = mixing.mix("horiz", images, alpha=0.4, lambd=0.5)
    np.testing.assert_allclose(horiz[:, :, :2], 0.1)
    np.testing.assert_allclose(horiz[:, :, 2:], 0.2)
    both = mixing.mix("mixandcat", images, alpha=0.5, lambd=0.5)
    np.testing.assert_allclose(both[:, :, :3], 0.15, rtol=1e-6)
    np.testing.assert_allclose(both[:, :, 3:], 0.6, rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), radius=st.floats(0.001, 4.0), size=st.integers(1, 12))
def test_stored_images_satisfy_the_budget(seed, radius, size):
    """F4: the L2 distance of the stored 8-bit image, not of the float one, is within the radius."""
    random = np.random.default_rng(seed)
    original = random.integers(0, 256, (5, size, size, 3), np.uint8)
    shift = random.normal(size=original.shape)
    shift *= radius / np.sqrt((shift**2).sum(axis=(1, 2, 3), keepdims=True))
    locked = np.clip(original / 255.0 + shift, 0, 1)
    stored = mixing.round_within(original, locked, radius)
    exact = np.sqrt((((stored.astype(float) - original) / 255) ** 2).sum(axis=(1, 2, 3)))
    assert (exact <= radius).all()
    np.testing.assert_allclose(mixing.distances(original, stored), exact, rtol=1e-12, atol=0)


def test_rounding_alone_would_break_the_budget_and_pulling_in_costs_little():
    random = np.random.default_rng(0)
    original = random.integers(40, 216, (64, 32, 32, 3), np.uint8)
    shift = random.normal(size=original.shape)
    shift /= np.sqrt((shift**2).sum(axis=(1, 2, 3), keepdims=True))
    locked = original / 255.0 + shift
    plain = np.rint(locked * 255).astype(np.uint8)
    assert (mixing.distances(original, plain) > 1.0).mean() > 0.5
    kept = mixing.distances(original, mixing.round_within(original, locked, 1.0))
    assert kept.max() <= 1.0
    assert kept.min() > 0.98


@given(seed=st.integers(0, 10**6))
def test_difference_restores_every_pixel(seed):
    random = np.random.default_rng(seed)
    original, stored = random.integers(0, 256, (2, 3, 5, 5, 3), np.uint8)
    assert (mixing.restore(stored, mixing.residual(original, stored)) == original).all()


def test_budget_grows_with_the_root_of_the_number_of_values():
    assert mixing.budget(1.0, (32, 32, 3)) == 1.0
    assert mixing.budget(0.5, (64, 64, 3)) == pytest.approx(1.0)
    assert mixing.budget(1.0, (28, 28, 1)) == pytest.approx(np.sqrt(784 / 3072))
