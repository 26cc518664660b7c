"""Attacks on embeddings: budgets, 8 bits, stronger and weaker ones, dodging."""

import functools

import numpy as np
import pytest

from common.attacks import feature_pgd, iftgsm
from common.errors import UserError
from face_mter.attacks.features import Attacker, steps_of
from face_mter.models.networks import build, embedder
from tests.helpers.steep import classifier

EPS = 8 / 255


@functools.cache
def model():
    """One for all tests: each attack is traced once."""
    return build("small", (12, 12, 3), 6, emb_size=8, loss_type="arcface", scale=16.0, seed=1)


def attacker(**options):
    return Attacker(model(), **{"pgd_steps": 10, "restarts": 2, "batch_size": 7} | options)


def pictures(count=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, count, 12, 12, 3), np.uint8)


@pytest.mark.parametrize("name", ["fftgsm", "iftgsm", "itgsm", "pgd", "noise"])
def test_pictures_stay_in_the_budget_and_cosines_are_theirs(name):
    a, (sources, victims) = attacker(), pictures()
    targets = a.embeddings(victims)
    found = a.impersonate(name, sources, targets, EPS, np.arange(20) % 6)
    clean = sources.astype(np.float32) / 255
    assert np.abs(found.x - clean).max() <= EPS + 1e-6 and found.x.min() >= 0 and found.x.max() <= 1
    assert np.abs(found.x - clean).max(axis=(1, 2, 3)).min() > 0
    as_file = np.rint(found.x * 255).astype(np.uint8)
    for images, cosine in ((found.x, found.cosine), (as_file, found.rounded)):
        z = a.embeddings(images)
        wanted = (z * targets).sum(1) / np.linalg.norm(z, axis=1) / np.linalg.norm(targets, axis=1)
        np.testing.assert_allclose(cosine, wanted, atol=1e-5)
    if name in ("fftgsm", "iftgsm", "itgsm"):
        # Steps of 1/255 from 8-bit pictures end on 8-bit pictures.
        np.testing.assert_allclose(found.x * 255, np.rint(found.x * 255), atol=1e-3)
        np.testing.assert_allclose(found.cosine, found.rounded, atol=1e-4)


def test_stronger_attacks_come_nearer():
    a, (sources, victims) = attacker(pgd_steps=40, restarts=3), pictures()
    targets = a.embeddings(victims)
    mean = {name: a.impersonate(name, sources, targets, EPS).cosine.mean() for name in ("noise", "fftgsm", "iftgsm")}
    mean["pgd"] = a.impersonate("pgd", sources, targets, EPS).cosine.mean()
    assert mean["noise"] < mean["fftgsm"] < mean["iftgsm"] < mean["pgd"] + 0.02
    more = a.impersonate("iftgsm", sources, targets, 2 * EPS).cosine.mean()
    assert more > mean["iftgsm"]


def test_dodging_goes_away_from_oneself():
    a, (sources, others) = attacker(), pictures()
    own = a.embeddings(others)
    before = a.judge(sources.astype(np.float32) / 255, own).cosine
    found = a.dodge(sources, own, EPS)
    assert (found.cosine < before).all()
    assert np.abs(found.x - sources.astype(np.float32) / 255).max() <= EPS + 1e-6


@pytest.mark.parametrize("eps, steps", [(5, 6), (10, 12), (16, 20), (1, 1), (0.2, 1), (20, 24)])
def test_steps_are_kurakins(eps, steps):
    assert steps_of(eps / 255) == steps


def test_feature_pgd_keeps_the_nearest_of_its_restarts():
    a, (sources, victims) = attacker(), pictures(6)
    x, targets = sources.astype(np.float32) / 255, a.embeddings(victims)

    def cosine(moved):
        return a.judge(np.asarray(moved), targets).cosine

    settings = {"eps": EPS, "alpha": EPS / 4, "steps": 5, "seed": 3}
    once, thrice = (cosine(feature_pgd(a.embed, x, targets, restarts=n, **settings)) for n in (1, 3))
    assert (thrice >= once - 1e-6).all() and (thrice > once + 1e-6).any()
    repeated = feature_pgd(a.embed, x, targets, restarts=3, **settings).numpy()
    assert (repeated == feature_pgd(a.embed, x, targets, restarts=3, **settings).numpy()).all()
    with pytest.raises(ValueError, match="restarts must be at least 1"):
        feature_pgd(a.embed, x, targets, restarts=0, **settings)


def test_an_example_rests_above_its_threshold():
    a, (sources, victims) = attacker(), pictures(6)
    x, targets = sources.astype(np.float32) / 255, a.embeddings(victims)
    before = a.judge(x, targets).cosine
    for attack, more in ((iftgsm, {}), (feature_pgd, {"seed": 0})):
        settings = {"eps": EPS, "alpha": 1 / 255, "steps": 6, **more}
        full = a.judge(attack(a.embed, x, targets, **settings).numpy(), targets).cosine
        half = (before + full) / 2
        rested = a.judge(attack(a.embed, x, targets, threshold=half, **settings).numpy(), targets).cosine
        assert (rested >= half - 1e-6).all() and (rested < full + 1e-6).all() and (rested < full - 1e-4).any()


def test_unknown_attacks_and_missing_classifiers_are_refused():
    a, (sources, victims) = attacker(), pictures(3)
    targets = a.embeddings(victims)
    with pytest.raises(UserError, match="--attacks: 'bim' is none of fftgsm"):
        a.impersonate("bim", sources, targets, EPS)
    only = Attacker(embedder(a.model))
    with pytest.raises(UserError, match="itgsm: needs a model with a classifier"):
        only.impersonate("itgsm", sources, targets, EPS, np.zeros(3, int))


@pytest.mark.parametrize("name", ["fftgsm", "iftgsm", "itgsm", "pgd", "dodge"])
def test_infinite_slopes_at_black_pixels_give_finite_pictures(name):
    a, (sources, victims) = Attacker(classifier((12, 12, 3), 6), pgd_steps=4, restarts=2), pictures(4)
    sources[:3, :6] = 0
    targets = a.embeddings(victims)
    if name == "dodge":
        found = a.dodge(sources, targets, EPS)
    else:
        found = a.impersonate(name, sources, targets, EPS, np.arange(4))
    assert np.isfinite(found.x).all() and np.isfinite(found.cosine).all() and np.isfinite(found.rounded).all()
    assert 0 < np.abs(found.x - sources / np.float32(255)).max() <= EPS + 1e-6
