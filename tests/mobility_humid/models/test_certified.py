"""The certified verifier: its bounds are reached, and nothing goes beyond them."""

import functools

import numpy as np
import pytest

from common.training import checkpoints
from mobility_humid.attacks.trips import trip_attack
from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import SEEK, SERVE, SLOT, UNTYPED, X, Y
from mobility_humid.models.certified import CertifiedSiamese, certified, clipped
from tests.helpers.trip_toys import GRID, random_samples

LAYOUT = Layout((SEEK, SERVE), 3, 2, 6, 4)
# Steps, constants, ever fewer points and random starts; what else there is differs in its norm.
OTHERS = ("st_fgsm_l2", "st_ifgsm_l1", "st_ifgsm_l0", "cw_l2", "strong", "apgd_l2", "noise")
ARGUMENTS = {
    **{"layout": LAYOUT, "grid": GRID, "encoder": "ways", "units": (), "place_spacing": 1.0, "dropout": 0.0},
    **{"profile_scale": (), "seed": 0},
}


@functools.lru_cache
def verifier(reads="strict"):
    """Random weights, answers of either sign."""
    model = CertifiedSiamese(reads=reads, **ARGUMENTS)
    x = random_samples(LAYOUT, 60, 7)
    model.adapt(x)
    rng = np.random.default_rng(3)
    model.weigh_tables.assign(rng.normal(size=model.weigh_tables.shape))
    weights = rng.normal(size=model.weigh_fixed.kernel.shape[0])
    model.weigh(weights, 0.0)
    model.weigh(weights, -float(np.median(model(x))))
    return model


def channel(model, x):
    """The fixed one."""
    return np.asarray(model.channels(model.observe(x))[0])


def moved(x, shift):
    """Samples with their moving points that are there shifted by whole cells, `shift` (n, K, length, 2), on the map."""
    out = x.copy()
    trips = out[:, LAYOUT.moving]
    there = trips[..., SLOT : SLOT + 1] > 0
    trips[..., X : Y + 1] = np.where(
        there, np.clip(trips[..., X : Y + 1] + shift, 0, np.array(GRID) - 1), trips[..., X : Y + 1]
    )
    return out


@pytest.mark.parametrize(("reads", "eta"), [("strict", 0), ("in_model", 2), ("strict", 20)])
def test_the_bounds_are_reached_and_not_passed(reads, eta):
    """Each point where the table is largest, or smallest, found by trying all cells within eta."""
    model, x = verifier(reads), random_samples(LAYOUT, 12, 1)
    low, high = (np.asarray(end) for end in model.bounds(model.observe(x), eta))
    table = np.asarray(model.unmoved(x)["table"])
    steps = np.arange(-min(eta, 14), min(eta, 14) + 1)
    for end, sign in ((low, -1.0), (high, 1.0)):
        best = np.full((*x[:, LAYOUT.moving].shape[:3],), -np.inf)
        shift = np.zeros((*best.shape, 2))
        for right in steps:
            for up in steps:
                tried = moved(x, np.array([right, up]))[:, LAYOUT.moving].astype(int)
                value = sign * table[np.arange(len(x))[:, None, None], tried[..., X], tried[..., Y]]
                better = value > best
                best[better], shift[better] = value[better], (right, up)
        np.testing.assert_allclose(np.asarray(model(moved(x, shift)))[:, 0], end, rtol=1e-5, atol=1e-5)
    rng = np.random.default_rng(2)
    for _ in range(20):
        z = np.asarray(model(moved(x, rng.integers(-eta, eta + 1, (*best.shape, 2)))))[:, 0]
        assert (z >= low - 1e-4).all() and (z <= high + 1e-4).all()


@pytest.mark.parametrize("name", ["st_ifgsm_linf", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_no_attack_passes_the_bounds(name):
    """Those with a radius instead of cells within the cells that they took."""
    model, x = verifier(), random_samples(LAYOUT, 16, 4)
    y = (np.asarray(model(x))[:, 0] > 0).astype(np.int32)
    settings = {"steps": 8, "restarts": 2, "search_steps": 2, "prune_rounds": 4, "radius": 12.0}
    found = np.asarray(trip_attack(model, x, y, name=name, layout=LAYOUT, grid=GRID, eta=2, **settings))
    assert (found != x).any()
    taken = np.abs(found - x).max(axis=(1, 2, 3)).astype(int)
    z = np.asarray(model(found))[:, 0]
    broken = held = 0
    for cells in np.unique(taken):
        rows = taken == cells
        low, high = (np.asarray(end) for end in model.bounds(model.observe(x[rows]), int(cells)))
        assert (z[rows] >= low - 1e-4).all() and (z[rows] <= high + 1e-4).all()
        safe = certified(low, high, y[rows])
        assert ((z[rows] > 0) == (y[rows] == 1))[safe].all()
        held, broken = held + safe.sum(), broken + (~safe).sum()
    assert held + broken == 16


def test_what_is_not_certified_an_attack_mostly_finds():
    """The gradient leads to the worst cells: of the distance to the bound the attack goes most."""
    model, x = verifier(), random_samples(LAYOUT, 40, 5)
    before = np.asarray(model(x))[:, 0]
    low, high = (np.asarray(end) for end in model.bounds(model.observe(x), 2))
    y = (before > 0).astype(np.int32)
    settings = {"name": "apgd_linf", "layout": LAYOUT, "grid": GRID, "eta": 2, "steps": 30, "restarts": 1}
    found = np.asarray(model(np.asarray(trip_attack(model, x, y, **settings))))[:, 0]
    holds = certified(low, high, y)
    broken = (found > 0) != (y == 1)
    assert not (broken & holds).any() and broken.sum() >= 0.7 * (~holds).sum() > 0


def test_a_clipped_answer_holds_whatever_the_trips_are():
    model, x = verifier(), random_samples(LAYOUT, 40, 6)
    fixed, seek = (np.asarray(part) for part in model.channels(model.observe(x)))
    np.testing.assert_allclose(fixed + seek, np.asarray(model(x))[:, 0], rtol=1e-5, atol=1e-5)
    same = (fixed + seek > 0).astype(int)
    most = [0.0, float(np.median(np.abs(seek))), 1e6]
    results = clipped(fixed, seek, same, most)
    for c, (right, held) in zip(most, results, strict=True):
        assert not (held & ~right).any()
        elsewhere = moved(x, np.random.default_rng(0).integers(-14, 15, (len(x), 3, 6, 2)))
        anything = np.clip(np.asarray(model.channels(model.observe(elsewhere))[1]), -c, c)
        assert ((fixed + anything > 0) == (same == 1))[held].all()
    assert results[0][1].sum() == (results[0][0] & (fixed != 0)).sum() and not results[-1][1].any()


def test_what_is_read_besides_the_places_of_seek_trips():
    x = random_samples(LAYOUT, 10, 8)
    later = x.copy()
    trips = later[:, LAYOUT.moving]
    trips[..., SLOT] = np.where(trips[..., SLOT] > 0, np.clip(trips[..., SLOT] + 100, 1, 288), 0)
    places = moved(x, np.full((10, 3, 6, 2), 2))
    for reads in ("strict", "in_model"):
        fixed, at_places, at_times = (channel(verifier(reads), v) for v in (x, places, later))
        np.testing.assert_array_equal(fixed, at_places)
        assert (fixed == at_times).all() == (reads == "strict")
    served = x.copy()
    served[:, 6:12, :, X] = np.where(served[:, 6:12, :, SLOT] > 0, 0, 0)
    assert (channel(verifier(), served) != channel(verifier(), x)).any()


def test_a_file_answers_alike(tmp_path):
    model, x = verifier("in_model"), random_samples(LAYOUT, 5, 9)
    checkpoints.save_model(model, tmp_path / "model.keras")
    again = checkpoints.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(again(x)))
    for one, other in zip(*(of.bounds(of.observe(x), 1) for of in (model, again)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("layout", [Layout((UNTYPED,), 3, 2, 6, 3), Layout((SERVE,), 3, 2, 6, 3)])
def test_without_served_and_seek_trips_there_is_nothing_to_certify(layout):
    with pytest.raises(ValueError, match="served and their seek trips"):
        CertifiedSiamese(**{**ARGUMENTS, "layout": layout})
