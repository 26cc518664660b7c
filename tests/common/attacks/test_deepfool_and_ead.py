"""DeepFool, untargeted FAB and EAD, step by step, against their algorithms in double precision."""

from functools import partial

import numpy as np
import pytest

from common.attacks import deepfool, ead, fab, fmn, run_counted
from tests.helpers.attack_oracles import SHAPES, Perceptron, each_rank, fooled, linear_task, norms

FAR = {"low": -1e3, "high": 1e3}


def leads(net, point, label):
    """Of each other class the lead over `label`, and its slope, at one point: {class: (value, slope)}."""
    hidden = np.tanh(point.ravel() @ net.w1 + net.b1)
    z = hidden @ net.w2 + net.b2
    through = (1 - hidden**2)[None] * (net.w2 - net.w2[:, [label]]).T
    slopes = through @ net.w1.T
    return {k: (z[k] - z[label], slopes[k].reshape(point.shape)) for k in range(len(z)) if k != label}


def algorithm_2(net, x, label, norm, overshoot, steps):
    """DeepFool from one point: the points at which it looks."""
    total, point = np.zeros_like(x), x
    for _ in range(steps):
        found = leads(net, point, label)
        if max(value for value, _ in found.values()) > 0:
            return point
        dual = (lambda w: np.abs(w).sum()) if norm == "linf" else np.linalg.norm
        value, slope = min(found.values(), key=lambda each: abs(each[0]) / dual(each[1]))
        way = np.sign(slope) / np.abs(slope).sum() if norm == "linf" else slope / (slope**2).sum()
        total = total + abs(value) * way
        point = x + (1 + overshoot) * total
    return point


@pytest.mark.parametrize("norm", ["l2", "linf"])
@each_rank
def test_deepfool_is_algorithm_2(norm, rank):
    net = Perceptron(SHAPES[rank], classes=5, seed=rank)
    x, y = net.data(8)
    found = np.asarray(deepfool(net.model, x, y, norm=norm, **FAR))
    wanted = [algorithm_2(net, p.astype(np.float64), int(label), norm, 0.02, 50) for p, label in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, np.stack(wanted), atol=2e-4, rtol=1e-4)
    assert fooled(net.model, found, y).all()
    # Two classes looked at are not four.
    few = np.asarray(deepfool(net.model, x, y, norm=norm, targets=1, **FAR))
    assert (norms(few - x, norm) > norms(found - x, norm) * 1.01).any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_goes_straight_over_a_linear_boundary(norm):
    model, x, y, (low, high), best = linear_task((4, 4, 1), 8, norm, False)
    for overshoot in (0.02, 0.1):
        found = deepfool(model, x, y, norm=norm, overshoot=overshoot, steps=1, low=low, high=high)
        np.testing.assert_allclose(norms(np.asarray(found) - x, norm), (1 + overshoot) * best, rtol=1e-3)


def test_deepfool_takes_a_gradient_for_each_class_and_step():
    net = Perceptron((3, 3, 2), classes=5, seed=2)
    x, y = net.data(6)
    for targets in (4, 3):
        attack, model, inputs, _ = deepfool.bind(net.model, x, y, steps=1, targets=targets, overshoot=0.0)
        _, gradients = run_counted(attack, model, inputs)
        assert int(gradients) == targets


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_towards_the_nearest_is_no_further_than_towards_any_one(norm):
    """And of two classes, where there is but one boundary, it is FAB-T bit for bit."""
    net = Perceptron((3, 3, 2), classes=6, seed=4)
    x, y = net.data(16)
    size = {
        name: norms(np.asarray(fab(net.model, x, y, norm=norm, steps=30, **options)) - x, norm)
        for name, options in {
            "nearest": {"one_by_one": False},
            "likeliest": {"targets": 1},
            "each": {},
        }.items()
    }
    assert np.median(size["nearest"]) <= np.median(size["likeliest"]) * 1.001
    assert np.median(size["nearest"] / size["each"]) < 1.02
    model, x, y, box, _ = linear_task((4, 4, 1), 8, norm, True)
    options = {"norm": norm, "steps": 20, "low": box[0], "high": box[1]}
    np.testing.assert_array_equal(fab(model, x, y, one_by_one=False, **options), fab(model, x, y, **options))


def fista(net, x, label, constant, beta, rate, steps, decision):
    """Algorithm 1 of EAD from one point, with one constant, and no box: the best of all points at which it looks."""
    y, before, best = x, x, (np.inf, x)

    def look(point, best):
        found = leads(net, point, label)
        value, slope = max(found.values(), key=lambda each: each[0])
        shift = point - x
        size = np.abs(shift).sum() if decision == "l1" else (shift**2).sum() + beta * np.abs(shift).sum()
        return value, slope, min(best, (size, point), key=lambda each: each[0]) if value > 0 else best

    for k in range(steps):
        value, slope, best = look(y, best)
        descent = 2 * (y - x) - (constant * slope if value < 0 else 0)
        ahead = y - rate * np.sqrt(1 - k / steps) * descent
        point = np.where(np.abs(ahead - x) > beta, ahead - beta * np.sign(ahead - x), x)
        *_, best = look(point, best)
        y, before = point + k / (k + 3) * (point - before), point
    *_, best = look(y, best)
    return best[1]


@pytest.mark.parametrize("decision", ["elastic net", "l1"])
@each_rank
def test_ead_is_algorithm_1(decision, rank):
    net = Perceptron(SHAPES[rank], classes=4, seed=rank)
    x, y = net.data(8)
    settings = {"beta": 0.005, "steps": 25}
    found = np.asarray(
        ead(net.model, x, y, **settings, constant=8.0, learning_rate=0.05, search_steps=1, decision=decision, **FAR)
    )
    wanted = [
        fista(net, p.astype(np.float64), int(label), 8.0, 0.005, 0.05, 25, decision)
        for p, label in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-4)
    assert fooled(net.model, found, y).mean() >= 0.5


def test_a9_ead_finds_the_l1_distance_of_the_linear_oracle():
    """Nearer than what is nearest in L2, and never nearer than the oracle."""
    model, x, y, (low, high), best = linear_task((4, 4, 1), 8, "l1", True)
    options = {"constant": 0.1, "learning_rate": 0.05, "low": low, "high": high}
    search = partial(ead, model, x, y, steps=300, search_steps=10, **options)
    found = {beta: np.asarray(search(beta=beta, decision="l1")) for beta in (1e-3, 0.02)}
    for moved in found.values():
        assert fooled(model, moved, y).all()
        assert (norms(moved - x, "l1") / best).min() >= 1 - 1e-4
    l2 = np.asarray(fmn(model, x, y, norm="l2", low=low, high=high))
    assert norms(found[0.02] - x, "l1").sum() < norms(l2 - x, "l1").sum()
    assert np.median(norms(found[0.02] - x, "l1") / best) <= 1.1


def test_bad_settings_are_refused():
    net = Perceptron((3, 3, 2), seed=2)
    x, y = net.data(4)
    for attack, settings, message in (
        (deepfool, {"norm": "l1"}, "linf or l2"),
        (deepfool, {"targets": 0}, "targets must be"),
        (deepfool, {"overshoot": -1.0}, "overshoot must be"),
        (ead, {"decision": "l2"}, "decision must be"),
        (ead, {"beta": float("nan")}, "beta must be"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(net.model, x, y, **settings)
