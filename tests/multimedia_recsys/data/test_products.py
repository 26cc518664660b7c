"""Drawn products: seeded, row by row, of many kinds."""

import numpy as np
import pytest

from common.errors import UserError
from multimedia_recsys.data.products import CATEGORIES, COLOURS, STYLES, products


@pytest.fixture(scope="module")
def drawn():
    return products(1200, seed=1)


def test_products_repeat_and_do_not_depend_on_how_many_are_drawn():
    few, many = products(5, seed=3), products(40, seed=3)
    for one, other in zip(few, many, strict=True):
        assert np.array_equal(one, other[:5])
    assert not np.array_equal(few.images, products(5, seed=4).images)
    assert not np.array_equal(few.images, products(5, seed=3, split="train").images)


def test_products_have_all_traits_and_stand_on_pale_ground(drawn):
    drawn = type(drawn)(*(values[:400] for values in drawn))
    assert drawn.images.shape == (400, 48, 48, 3)
    assert drawn.images.dtype == np.uint8
    for values, names in ((drawn.category, CATEGORIES), (drawn.colour, COLOURS), (drawn.style, STYLES)):
        assert np.array_equal(np.unique(values), np.arange(len(names)))
    corners = drawn.images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) > 200
    # Every product covers a part of the image.
    dark = (drawn.images.astype(int).min(axis=3) < 150).mean(axis=(1, 2))
    assert (dark > 0.01).mean() > 0.95
    assert dark.max() < 0.8


def test_categories_differ_more_than_products_of_one(drawn):
    """Mean silhouettes: the nearest one is mostly a product's own."""
    shapes = np.abs(drawn.images.astype(float) - np.median(drawn.images, axis=(1, 2), keepdims=True)).max(axis=3) > 40
    shapes = shapes.reshape(len(shapes), -1).astype(float)
    shapes -= shapes.mean(axis=0)
    means = np.stack([shapes[:800][drawn.category[:800] == kind].mean(axis=0) for kind in range(len(CATEGORIES))])
    nearest = (shapes[800:] @ means.T - 0.5 * (means**2).sum(axis=1)).argmax(axis=1)
    right = (nearest == drawn.category[800:]).mean()
    # Far above chance, 0.08, and far from trivial.
    assert 0.3 < right < 0.95


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 8}, {"seed": -1}])
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(UserError, match="expected at least 1, 16 and 0"):
        products(**({"count": 1, "seed": 0} | wrong))
