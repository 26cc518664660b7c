"""Attacks on embeddings: budgets, 8 bits, stronger and weaker ones, dodging."""

import functools

import numpy as np
import pytest

from common.attacks import feature_pgd, iftgsm
from common.errors import UserError
from face_mter.attacks.features import ATTACKS, Attacker, steps_of
from face_mter.evaluation.verification import cosines
from face_mter.models.networks import build, embedder
from tests.helpers.steep import classifier

EPS = 8 / 255


@functools.cache
def model():
    """One for all tests: each attack is traced once."""
    return build("small", (12, 12, 3), 6, emb_size=8, loss_type="arcface", scale=16.0, seed=1)


def attacker(**options):
    return Attacker(model(), **{"pgd_steps": 10, "restarts": 2, "batch_size": 7} | options)


def impersonate(a, name, sources, targets, aims=None):
    return a.evaluation(sources, targets, aims=aims).run(a.entry(name, EPS))


def cosine_of(a, moved, targets):
    return cosines(a.embeddings(np.asarray(moved, np.float32)), targets)


def images(count=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, count, 12, 12, 3), np.uint8)


@pytest.mark.parametrize("name", ["fftgsm", "iftgsm", "itgsm", "pgd", "noise"])
def test_images_stay_in_the_budget_and_cosines_are_theirs(name):
    a, (sources, victims) = attacker(), images()
    targets = a.embeddings(victims)
    found = impersonate(a, name, sources, targets, (np.arange(20) % 6).astype(np.int32) if name == "itgsm" else None)
    clean = sources.astype(np.float32) / 255
    assert np.abs(found.x - clean).max() <= EPS + 1e-6 and found.x.min() >= 0 and found.x.max() <= 1
    assert np.abs(found.x - clean).max(axis=(1, 2, 3)).min() > 0
    # As a file holds them.
    np.testing.assert_allclose(found.x * 255, np.rint(found.x * 255), atol=1e-3)
    for shown, cosine in ((clean, found.before), (np.rint(found.x * 255).astype(np.uint8), found.after)):
        z = a.embeddings(shown)
        wanted = (z * targets).sum(1) / np.linalg.norm(z, axis=1) / np.linalg.norm(targets, axis=1)
        np.testing.assert_allclose(cosine, wanted, atol=1e-5)
    if name in ("fftgsm", "iftgsm", "itgsm"):
        # Steps of 1/255 from 8-bit images end on 8-bit images.
        np.testing.assert_allclose(found.found, found.after, atol=1e-4)
    assert found.entry.control == (name == "noise")


def test_stronger_attacks_come_nearer():
    a, (sources, victims) = attacker(pgd_steps=40, restarts=3), images()
    targets = a.embeddings(victims)
    mean = {
        name: impersonate(a, name, sources, targets).found.mean()
        for name, of in ATTACKS.items()
        if not (of.at_labels or of.away)
    }
    assert mean["noise"] < mean["fftgsm"] < mean["iftgsm"] < mean["pgd"] + 0.02
    more = a.evaluation(sources, targets).run(a.entry("iftgsm", 2 * EPS)).found.mean()
    assert more > mean["iftgsm"]


def test_dodging_goes_away_from_oneself():
    a, (sources, others) = attacker(), images()
    own = a.embeddings(others)
    found = impersonate(a, "dodge", sources, own, -own)
    assert (found.after < found.before).all()
    assert np.abs(found.x - sources.astype(np.float32) / 255).max() <= EPS + 1e-6


@pytest.mark.parametrize("eps, steps", [(5, 6), (10, 12), (16, 20), (1, 1), (0.2, 1), (20, 24)])
def test_steps_are_kurakins(eps, steps):
    assert steps_of(eps / 255) == steps


def test_feature_pgd_keeps_the_nearest_of_its_restarts():
    a, (sources, victims) = attacker(), images(6)
    x, targets = sources.astype(np.float32) / 255, a.embeddings(victims)

    def cosine(moved):
        return cosine_of(a, moved, targets)

    settings = {"eps": EPS, "alpha": EPS / 4, "steps": 5, "seed": 3}
    once, thrice = (cosine(feature_pgd(a.embed, x, targets, restarts=n, **settings)) for n in (1, 3))
    assert (thrice >= once - 1e-6).all() and (thrice > once + 1e-6).any()
    repeated = feature_pgd(a.embed, x, targets, restarts=3, **settings).numpy()
    assert (repeated == feature_pgd(a.embed, x, targets, restarts=3, **settings).numpy()).all()
    with pytest.raises(ValueError, match="restarts must be at least 1"):
        feature_pgd(a.embed, x, targets, restarts=0, **settings)


def test_an_example_rests_above_its_threshold():
    a, (sources, victims) = attacker(), images(6)
    x, targets = sources.astype(np.float32) / 255, a.embeddings(victims)
    before = cosine_of(a, x, targets)
    for attack, more in ((iftgsm, {}), (feature_pgd, {"seed": 0})):
        settings = {"eps": EPS, "alpha": 1 / 255, "steps": 6, **more}
        full = cosine_of(a, attack(a.embed, x, targets, **settings), targets)
        half = (before + full) / 2
        rested = cosine_of(a, attack(a.embed, x, targets, threshold=half, **settings), targets)
        assert (rested >= half - 1e-6).all() and (rested < full + 1e-6).all() and (rested < full - 1e-4).any()


def test_unknown_attacks_and_missing_classifiers_are_refused():
    with pytest.raises(UserError, match="attack 'bim': is none of fftgsm"):
        attacker().entry("bim", EPS)
    with pytest.raises(UserError, match="itgsm: needs a model with a classifier"):
        Attacker(embedder(attacker().model)).entry("itgsm", EPS)


@pytest.mark.parametrize("name", ["fftgsm", "iftgsm", "itgsm", "pgd", "dodge"])
def test_infinite_slopes_at_black_pixels_give_finite_images(name):
    a, (sources, victims) = Attacker(classifier((12, 12, 3), 6), pgd_steps=4, restarts=2), images(4)
    sources[:3, :6] = 0
    targets = a.embeddings(victims)
    found = impersonate(a, name, sources, targets, {"itgsm": np.arange(4, dtype=np.int32), "dodge": -targets}.get(name))
    assert all(np.isfinite(values).all() for values in (found.x, found.before, found.found, found.after))
    assert 0 < np.abs(found.x - sources / np.float32(255)).max() <= EPS + 1e-6
