"""APGD, FAB and Square against formulas in double precision, and AutoAttack's driver against planted attacks."""

import dataclasses
import multiprocessing
import os
import signal
from functools import lru_cache, partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.attacks import RandomModel, apgd, attack_dataset, autoattack, bpda, fab, fmn, objectives, search, square
from common.attacks.apgd import auto_pgd
from common.attacks.attack import as_tensors
from common.attacks.autoattack import within
from common.attacks.fab import nearest_on_plane
from common.attacks.tensors import normal
from common.errors import UserError
from tests.helpers import attack_oracles as oracles
from tests.helpers.attack_oracles import SHAPES, Perceptron, column, each_rank, fooled, linear_task, norms, perceptron

NORMS = ("linf", "l2", "l1")
GOES_BACK = (0.75, 0.22, 0.06, 0.03)


@pytest.mark.parametrize("norm", NORMS)
@each_rank
def test_a8_linear_oracle(norm, rank):
    """APGD fools nobody at 0.98 of the smallest budget and everybody at 1.02."""
    for batch in (1, 8):
        model, x, y, (low, high), best = linear_task(SHAPES[rank], batch, norm, True)
        box = {"low": low, "high": high, "norm": norm}
        assert not fooled(model, apgd(model, x, y, eps=0.98 * best, steps=60, **box), y).any()
        assert fooled(model, apgd(model, x, y, eps=1.02 * best, steps=60, **box), y).all()
        assert fooled(model, apgd(model, x, y, eps=1.02 * best, steps=60, loss="margin", targets=1, **box), y).all()


@pytest.mark.parametrize("norm", NORMS)
def test_square_on_the_linear_oracle(norm):
    """Nobody at 0.98 of the smallest budget; all within twice that."""
    model, x, y, (low, high), best = linear_task((4, 4, 1), 8, norm, True)
    options = {"low": low, "high": high, "norm": norm, "steps": 400}
    assert not fooled(model, square(model, x, y, eps=0.98 * best, **options), y).any()
    assert fooled(model, square(model, x, y, eps=2 * best, **options), y).all()


@pytest.mark.parametrize("norm", NORMS)
@each_rank
def test_a9_fab_and_fmn_find_the_distance_of_the_linear_oracle(norm, rank):
    for batch in (1, 8):
        model, x, y, (low, high), best = linear_task(SHAPES[rank], batch, norm, True)
        for attack in (partial(fab, steps=60), partial(fab, steps=60, one_by_one=False), partial(fmn, steps=300)):
            found = np.asarray(attack(model, x, y, norm=norm, low=low, high=high))
            assert fooled(model, found, y).all()
            ratio = norms(found - x, norm) / best
            assert ratio.min() >= 1 - 1e-4 and ratio.max() <= 1.05, (attack, ratio)


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_point_of_a_plane_in_the_box(norm):
    """Against bisection in double precision, for gains of either sign, in reach and out of it."""
    rng = np.random.default_rng(0)
    x, slope = rng.random((40, 3, 4)).astype(np.float32), rng.normal(size=(40, 3, 4)).astype(np.float32)
    slope[::7, 0] = 0.0
    most = np.where(slope > 0, slope * (1 - x), slope * -x).sum(axis=(1, 2))
    gain = (most * np.linspace(0.05, 0.95, 40)).astype(np.float32)
    gain[::3] = -0.3 * np.where(slope > 0, slope * x, slope * (x - 1)).sum(axis=(1, 2))[::3]
    shift = nearest_on_plane(*map(tf.constant, (x, slope, column(gain, x))), 0.0, 1.0, norm).numpy()
    np.testing.assert_allclose((shift * slope).sum(axis=(1, 2)), gain, rtol=1e-4, atol=1e-5)
    assert (x + shift >= -1e-6).all() and (x + shift <= 1 + 1e-6).all()
    for i in range(40):
        away = np.sign(gain[i]) * slope[i].ravel().astype(np.float64)
        room = np.where(away > 0, 1 - x[i].ravel(), np.where(away < 0, x[i].ravel(), 0.0))
        best = oracles.smallest_budget(np.abs(away), abs(float(gain[i])), room, norm)
        assert norms(shift[i : i + 1], norm)[0] == pytest.approx(best, rel=1e-4, abs=1e-6)
    beyond = nearest_on_plane(*map(tf.constant, (x, slope, column(1.5 * most, x))), 0.0, 1.0, norm).numpy()
    np.testing.assert_allclose((beyond * slope).sum(axis=(1, 2)), most, rtol=1e-4)


def algorithm_1(net, x, y, start, eps, steps, norm):
    """Algorithm 1 of Croce & Hein 2020 in double precision, one example after the other, from a given start."""
    own, first, least, shorter = GOES_BACK
    unit = np.sign if norm == "linf" else lambda g: g / np.linalg.norm(g)
    checks = [0, max(int(first * steps), 1)]
    while checks[-1] < steps:
        checks.append(
            checks[-1] + max(checks[-1] - checks[-2] - max(int(shorter * steps), 1), max(int(least * steps), 1))
        )
    out = []
    for x0, label, point in zip(x.astype(np.float64), y, start.astype(np.float64), strict=True):

        def look(p, label=label):
            z = net.logits(p[None])[0]
            return np.logaddexp.reduce(z) - z[label], net.gradient(p[None], np.array([label]))[0]

        def project(p, x0=x0):
            return oracles.project(p.ravel(), x0.ravel(), eps, np.zeros(x0.size), np.ones(x0.size), norm).reshape(
                x0.shape
            )

        before, size, (value, slope) = point, 2 * eps, look(point)
        best, last, checked, halved, raised = (value, point, slope), value, value, True, 0
        for step in range(1, steps + 1):
            share = own if step > 1 else 1.0
            moved = project(point + size * unit(slope))
            before, point = point, project(point + share * (moved - point) + (1 - share) * (point - before))
            value, slope = look(point)
            raised, last = raised + (value > last), value
            if value > best[0]:
                best = value, point, slope
            if step in checks:
                period = step - checks[checks.index(step) - 1]
                halved, checked = raised <= 0.75 * period or (not halved and checked >= best[0]), best[0]
                raised = 0
                if halved:
                    size, point, slope = size / 2, best[1], best[2]
        out.append(best[0])
    return np.array(out)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a10_apgd_is_algorithm_1(norm):
    """The loss that is reached, against an implementation of its own; one that never halves does not reach it."""
    net = perceptron(4)
    x, y = net.data(12)
    eps = {"linf": 0.06, "l2": 0.2}[norm]
    options = {"eps": eps, "norm": norm, "stop": False, "index": np.arange(12)}
    start = apgd(net.model, x, y, steps=0, **options).numpy()
    np.testing.assert_allclose(norms(start - x, "linf").max() if norm == "linf" else eps, eps, rtol=0.2)

    def reached(moved):
        z = net.logits(np.asarray(moved, np.float64))
        return np.logaddexp.reduce(z, axis=1) - z[np.arange(12), y]

    for steps in (1, 7, 40):
        wanted = algorithm_1(net, x, y, start, eps, steps, norm)
        found = apgd(net.model, x, y, steps=steps, **options)
        wrong = fooled(net.model, found, y)
        # Among misclassified iterates and others the former are kept, whatever their loss.
        np.testing.assert_allclose(reached(found)[~wrong], wanted[~wrong], rtol=2e-3, atol=2e-4)


def test_losses_are_their_formulas():
    z = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * 4
    y, target = np.arange(50, dtype=np.int32) % 6, (np.arange(50, dtype=np.int32) + 2) % 6
    inputs = {"y": tf.constant(y), "target": tf.constant(target)}
    sorted_z, rows = -np.sort(-z.astype(np.float64), axis=1), np.arange(50)
    others = np.where(np.arange(6) == y[:, None], -np.inf, z).max(axis=1)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    wanted = {
        "untargeted_dlr": (others - z[rows, y]) / (sorted_z[:, 0] - sorted_z[:, 2]),
        "targeted_dlr": (z[rows, target] - z[rows, y]) / (sorted_z[:, 0] - sorted_z[:, 2:4].mean(axis=1)),
        "towards": z[rows, target] - z[rows, y],
        "probability_margin": np.where(np.arange(6) == y[:, None], 0, p).max(axis=1) - p[rows, y],
    }
    for name, formula in wanted.items():
        value, success = getattr(objectives, name)(lambda x: x, inputs)(tf.constant(z))
        np.testing.assert_allclose(value, formula, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(success, z.argmax(axis=1) != y)
    for name in ("untargeted_dlr", "targeted_dlr"):
        scaled = getattr(objectives, name)(lambda x: 1000 * x, inputs)(tf.constant(z))[0]
        np.testing.assert_allclose(scaled, wanted[name], rtol=1e-4, atol=1e-5)


def test_b11_scaled_logits_hide_nothing_from_the_ratio():
    """Cross-entropy has no slope left where logits lie thousands apart; the ratio and the margin have theirs."""
    net = perceptron(4)
    x, y = net.data(40)
    scaled = keras.Sequential([net.model, keras.layers.Rescaling(3e4)])
    options = {"eps": 0.15, "steps": 30}
    left = {
        loss: (~fooled(scaled, apgd(scaled, x, y, loss=loss, **options), y)).mean() for loss in ("ce", "dlr", "margin")
    }
    plain = (~fooled(net.model, apgd(net.model, x, y, loss="dlr", **options), y)).mean()
    assert left["dlr"] <= plain + 0.03 and left["margin"] <= plain + 0.03
    assert left["ce"] > plain + 0.2


@pytest.mark.parametrize("norm", NORMS)
def test_square_keeps_the_best_and_uses_the_budget(norm):
    """More queries never lower the margin, whole windows lie on the ball, and no gradient is taken."""
    net = Perceptron((6, 6, 2))
    x, y = net.data(16)
    eps = {"linf": 0.05, "l2": 0.3, "l1": 1.0}[norm]
    last = np.full(16, -np.inf)
    for steps in (0, 1, 5, 40):
        result = attack_dataset(partial(square, net.model, eps=eps, norm=norm, steps=steps, stop=False), x, y)
        z = net.logits(result.x.astype(np.float64))
        margin = np.where(np.arange(3) == y[:, None], -np.inf, z).max(axis=1) - z[np.arange(16), y]
        assert (margin >= last - 1e-5).all()
        last, sizes = margin, norms(result.x - x, norm)
        assert (sizes <= eps * (1 + 1e-4) + 1e-6).all() and result.gradients == 0
    assert np.median(sizes) > 0.8 * eps


def test_square_halves_its_windows_by_the_paper_s_schedule():
    from common.attacks.square import _Window

    for count, share in ((0, 0.8), (10, 0.8), (11, 0.4), (51, 0.2), (501, 0.05), (4001, 0.00625)):
        window = _Window(
            tf.zeros([1, 32, 32, 3]), tf.fill([1, 1, 1, 1], float(count)), tf.zeros([1, 2], tf.int32), places=1
        )
        side = max(round((share * 32 * 32) ** 0.5), 1)
        assert window.side.numpy() == side
        assert np.count_nonzero(window.mask(0).numpy()) == side**2


@lru_cache
def classifier(units: int, seed: int = 0) -> keras.Model:
    """One for all tests, for each attack is compiled once for each model."""
    draw = [keras.initializers.GlorotUniform(seed + k) for k in range(2)]
    layers = [keras.layers.Flatten(), keras.layers.Dense(12, "tanh", kernel_initializer=draw[0])]
    return keras.Sequential([keras.Input((3, 3, 1)), *layers, keras.layers.Dense(units, kernel_initializer=draw[1])])


def task(units: int, count: int = 24):
    model = classifier(units)
    x = np.random.default_rng(1).random((count, 3, 3, 1), dtype=np.float32)
    z = np.asarray(model(x))
    return model, x, (z[:, 0] > 0).astype(np.int32) if units == 1 else z.argmax(axis=1).astype(np.int32)


@pytest.mark.parametrize(
    ("norm", "units", "version"),
    [
        *(("linf", 1, "standard"), ("linf", 3, "standard")),
        pytest.param("linf", 2, "plus", marks=pytest.mark.slow),
        pytest.param("linf", 5, "plus", marks=pytest.mark.slow),
        pytest.param("l2", 1, "standard", marks=pytest.mark.slow),
        pytest.param("l1", 5, "standard", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_classes(norm, units, version):
    """One logit, two classes and three have no ratio of the paper's: what takes its place is said."""
    model, x, y = task(units)
    eps = {"linf": 0.1, "l2": 0.2, "l1": 0.4}[norm]
    result = autoattack(model, x, y, eps=eps, norm=norm, version=version)
    assert result.clean.all() and 0 < result.robust.sum() < len(x)
    assert [step.left for step in result.steps] == sorted((step.left for step in result.steps), reverse=True)
    assert any("needs 4 classes" in line for line in result.left_out) == (units < 4)
    assert within(x, result.x, norm, eps, 0.0, 1.0).all()
    z = np.asarray(model(result.x))
    wrong = ((z[:, 0] > 0).astype(np.int32) if units == 1 else z.argmax(axis=1)) != y
    np.testing.assert_array_equal(wrong, ~result.robust)
    np.testing.assert_array_equal(result.broken_by > 0, wrong)


def test_examples_wrong_before_are_not_attacked_and_a_step_meets_survivors_alone():
    model, x, y = task(3)
    y[:5] = (y[:5] + 1) % 3
    met = []

    def planted(x, y, index):
        met.append(np.array(index))
        return x

    result = autoattack(model, x, y, eps=0.1, version="custom", attacks={"none": planted, "again": planted})
    np.testing.assert_array_equal(met[0], np.arange(5, 24))
    np.testing.assert_array_equal(met[1], np.arange(5, 24))
    assert (result.broken_by[:5] == 0).all() and (result.broken_by[5:] == -1).all() and not result.clean[:5].any()


def test_what_leaves_ball_or_box_or_is_no_number_is_no_success():
    model, x, y = task(3)
    elsewhere = x[np.argmax(np.asarray(model(x))[:, (int(y[0]) + 1) % 3])]

    def far(x, y):
        return np.broadcast_to(elsewhere, x.shape)

    def outside(x, y):
        return np.full_like(x, 7.0)

    def broken(x, y):
        return np.full_like(x, np.nan)

    attacks = {"far": far, "outside": outside, "broken": broken}
    result = autoattack(model, x, y, eps=1e-3, version="custom", attacks=attacks)
    assert result.robust.all()
    np.testing.assert_array_equal(result.x, x)
    assert autoattack(model, x, y, eps=1.0, version="custom", attacks={"far": far}).robust.mean() < 1


def test_no_examples_and_no_images():
    model, x, y = task(5)
    empty = autoattack(model, x[:0], y[:0], eps=0.1)
    assert empty.x.shape == (0, 3, 3, 1) and [step.left for step in empty.steps] == [0] * 5
    draw = keras.initializers.GlorotUniform(3)
    rows = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, kernel_initializer=draw)])
    x = np.random.default_rng(0).random((12, 6), dtype=np.float32)
    y = np.asarray(rows(x)).argmax(axis=1)
    for norm, eps, given in (("linf", 0.05, True), ("l2", 0.1, False)):
        result = autoattack(rows, x, y, eps=eps, norm=norm)
        assert ("square" in [step.name for step in result.steps]) == given
        assert any("windows" in line for line in result.left_out) != given
        assert 0 < result.robust.sum() < 12


def test_budgets_per_example():
    model, x, y = task(5)
    eps = np.where(np.arange(24) < 12, 1e-6, 0.5).astype(np.float32)
    result = autoattack(model, x, y, eps=eps)
    assert result.robust[:12].all() and not result.robust[12:].all()


def test_a_part_of_the_examples_gets_what_all_get():
    """Draws are tied to places in the data set."""
    model, x, y = task(5)
    attacks = {"apgd": partial(apgd, model, eps=0.08, steps=5), "square": partial(square, model, eps=0.08, steps=5)}
    options = {"eps": 0.08, "version": "custom", "attacks": attacks}
    all_of, rows = autoattack(model, x, y, **options), np.array([3, 7, 20])
    part = autoattack(model, x[rows], y[rows], index=rows, **options)
    np.testing.assert_allclose(part.x, all_of.x[rows], atol=2e-5)
    elsewhere = autoattack(model, x[rows], y[rows], **options)
    assert np.abs(elsewhere.x - all_of.x[rows]).max() > 1e-3
    with pytest.raises(ValueError, match="index must be of shape"):
        autoattack(model, x, y, index=rows, **options)


@pytest.fixture(scope="module")
def whole():
    model, x, y = task(5)
    return autoattack(model, x, y, eps=0.08)


def same(a, b):
    for name in ("x", "clean", "robust", "broken_by"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert [step[:5] for step in a.steps] == [step[:5] for step in b.steps]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_a_stopped_evaluation_goes_on_to_the_same_bits(whole, tmp_path, after):
    """What had been run is not run again; a finished one is read."""
    model, x, y = task(5)
    lines = []

    def stop(line):
        lines.append(line)
        if len(lines) == after:
            raise StoppedError

    file = tmp_path / "state.npz"
    with pytest.raises(StoppedError):
        autoattack(model, x, y, eps=0.08, state=file, log=stop)
    lines.clear()
    same(autoattack(model, x, y, eps=0.08, state=file, log=lines.append), whole)
    assert len(lines) == 4 - after


def test_a_state_of_another_evaluation_is_refused_by_name(tmp_path):
    model, x, y = task(3)
    file = tmp_path / "state.npz"
    attacks = {"none": lambda x, y: x}

    def run(model=model, x=x, y=y, eps=0.1, **options):
        return autoattack(model, x, y, eps=eps, state=file, **{"version": "custom", "attacks": attacks, **options})

    run()
    other = classifier(3, seed=9)
    for name, changed in {
        "eps": {"eps": 0.2},
        "norm": {"norm": "l2"},
        "examples": {"x": x[::-1]},
        "labels": {"y": y[::-1]},
        "seed": {"seed": 1},
        "model": {"model": other},
        "attacks": {"attacks": {**attacks, "more": attacks["none"]}},
        "box": {"high": 2.0},
    }.items():
        with pytest.raises(UserError, match=rf"state\.npz: is of an evaluation with other {name}"):
            run(**changed)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"state\.npz: not a readable \.npz"):
        run()
    np.savez(file, x=np.zeros(3))
    with pytest.raises(UserError, match="is no state of an AutoAttack"):
        run()


def evaluate_until_killed(file):
    model, x, y = task(5)

    def killed(line):
        if line.startswith("apgd-t"):
            os.kill(os.getpid(), signal.SIGKILL)

    autoattack(model, x, y, eps=0.08, state=file, log=killed)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_bits(whole, tmp_path):
    file = tmp_path / "state.npz"
    process = multiprocessing.get_context("spawn").Process(target=evaluate_until_killed, args=(file,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    model, x, y = task(5)
    same(autoattack(model, x, y, eps=0.08, state=file), whole)


def test_refusals():
    model, x, y = task(3)
    for options, message in (
        ({"version": "standart"}, "version must be"),
        ({"version": "custom"}, "attacks are given with"),
        ({"attacks": {}}, "attacks are given with"),
        ({"norm": "l3"}, "norm must be"),
        ({"eps": -1.0}, "eps must be finite and 0 or more"),
        ({"x": (x * 255).astype(np.uint8)}, "Divide 8-bit images by 255"),
        ({"x": x * 255, "y": (y + 1) % 3}, "Divide 8-bit images by 255"),
        ({"y": y + 3}, "labels"),
        ({"y": y[:-1]}, "24"),
    ):
        with pytest.raises(ValueError, match=message):
            autoattack(model, **{"x": x, "y": y, "eps": 0.1, **options})
    with pytest.raises(ValueError, match="loss 'dlr' needs 4 classes or more, this model has 3"):
        apgd(model, x, y, eps=0.1, loss="dlr", targets=2)
    with pytest.raises(ValueError, match="in l2 Square takes images"):
        square(*linear_task((12,), 2, "l2", True)[:3], eps=0.1, norm="l2")


def noisy(net, scale):
    """The network behind noise that is its own for each seed."""

    def function(x, seeds):
        return net.model(x + scale * normal(seeds, tf.shape(x)[1:]), training=False)

    return RandomModel(function)


def test_a_random_model_is_attacked_by_its_mean():
    """Draws follow from seed, place and number of the evaluation: the same twice, others in each, and alone as in a
    batch; more draws fool more of the draws to come."""
    net = perceptron(4)
    x, y = net.data(40)
    model, options = noisy(net, 0.25), {"eps": 0.06, "steps": 25, "index": np.arange(40)}
    found = {draws: apgd(model, x, y, draws=draws, **options).numpy() for draws in (1, 20)}
    np.testing.assert_array_equal(apgd(model, x, y, draws=20, **options), found[20])
    alone = apgd(model, x[7:9], y[7:9], draws=20, **{**options, "index": np.array([7, 8])})
    np.testing.assert_allclose(alone, found[20][7:9], atol=2e-5)

    def right(moved):
        draws = [np.asarray(model(moved, tf.random.uniform([40, 2], 0, 2**30, tf.int32, seed=k))) for k in range(50)]
        return np.mean([z.argmax(axis=1) == y for z in draws])

    assert right(found[20]) < right(found[1]) - 0.02 < right(x)
    result = autoattack(model, x, y, eps=0.06, version="rand")
    assert [step.name for step in result.steps] == ["clean", "apgd-ce", "apgd-dlr"]
    assert result.robust.sum() < result.clean.sum()


def test_each_evaluation_has_draws_of_its_own():
    seen = []

    def objective(model, inputs):
        def look(x):
            seen.append((inputs["evaluation"].numpy().tolist(), inputs.get("restart").numpy().tolist()))
            return tf.reduce_sum(x, axis=1), tf.zeros([2], tf.bool)

        return look

    attack = dataclasses.replace(auto_pgd("linf", "ce"), objective=objective, numbered=True)
    inputs = as_tensors({"x": np.zeros((2, 3), np.float32), "eps": 0.1, "steps": 3, "restarts": 2})
    search(attack, None, inputs)
    assert seen == [([k, k], [restart, restart]) for restart in (0, 1) for k in range(4)]


def test_steps_without_a_slope_get_one():
    """Rounding has none of its own; with one in its place, or another's, the attack goes through."""
    net = perceptron(4)
    x, y = net.data(40)

    def rounded(x):
        return tf.round(x * 16) / 16

    options = {"eps": 0.15, "steps": 20}
    with pytest.raises(ValueError, match="no gradient reaches the input"):
        apgd(lambda x: net.model(rounded(x)), x, y, **options)
    through = bpda(rounded)
    seeing = (~fooled(net.model, rounded(apgd(lambda x: net.model(through(x)), x, y, **options)), y)).mean()
    plain = (~fooled(net.model, apgd(net.model, x, y, **options), y)).mean()
    assert seeing <= plain + 0.1
    point = tf.constant([[0.3, 0.7]])
    with tf.GradientTape() as tape:
        tape.watch(point)
        value = bpda(tf.round, lambda x: x**2)(point)
    np.testing.assert_array_equal(value, [[0.0, 1.0]])
    np.testing.assert_allclose(tape.gradient(value, point), 2 * point)


def test_fast_leaves_those_that_are_far_alone_and_escalates_where_gradients_are_masked():
    """Square breaking what gradients left is the flag; then, and then alone, all of `standard` runs."""
    model, x, y = task(5)
    result = autoattack(model, x, y, eps=0.08, version="fast")
    steps = {step.name: step for step in result.steps}
    assert not result.masked and all(steps[name].given == 0 for name in steps if name.startswith("standard"))
    standard = autoattack(model, x, y, eps=0.08)
    assert result.gradients < standard.gradients / 2
    assert steps["near-ce"].given <= steps["margin-t"].left
    assert sum(step.broken for step in result.steps) == 24 - result.robust.sum()

    scale = 16.0

    @tf.custom_gradient
    def stopped(x):
        return tf.round(x * scale) / scale, lambda slope: 1e-30 * slope

    def masked(x):
        return tf.stop_gradient(model(stopped(x))) + 1e-12 * tf.reduce_sum(x)

    broken = autoattack(masked, x, np.asarray(masked(x)).argmax(axis=1), eps=0.3, version="fast")
    steps = {step.name: step for step in broken.steps}
    assert broken.masked and steps["square"].broken > 0
    assert steps["standard square"].given == steps["standard fab-t"].left > 0 or not broken.robust.any()
    assert autoattack(model, x, y, eps=0.08, version="fast", seed=1).robust.sum() <= standard.robust.sum() + 2
