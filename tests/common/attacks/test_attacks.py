"""The attacks by name, against closed forms, NumPy and deliberately broken copies of themselves (A1-A19)."""

import gc
import warnings
import weakref
from functools import lru_cache, partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from common.attacks import (
    Result,
    UpdateRule,
    ascent,
    attack_dataset,
    bim,
    budget,
    compile,
    feature_pgd,
    fftgsm,
    fgsm,
    iftgsm,
    l2,
    linf,
    loop,
    merge,
    mi_fgsm,
    pgd,
    r_step_ll,
    step_ll,
    tensors,
    unit_l2,
    updates,
    worst_case,
)
from common.attacks.objectives import cosine_to, targeted_ce, untargeted_ce
from tests.helpers import attack_oracles as oracles
from tests.helpers.attack_oracles import (
    SHAPES,
    Perceptron,
    check_inside,
    column,
    each_rank,
    fooled,
    linear_task,
    perceptron,
    search,
)

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")

layers = keras.layers
NORMS = ("linf", "l2", "l1")
# A matrix product may round a row differently in another batch: where only the gradient's signs enter it cannot show.
ROUNDING = {"linf": 0.0, "l2": 1e-6, "l1": 1e-6}


def in_two_steps(attack, **options):
    return lambda net, x, y, eps, **more: attack(net.model, x, y, eps=eps, alpha=eps / 2, steps=3, **options, **more)


def towards(attack, **options):
    return lambda net, x, y, eps, **more: attack(net.model, x, np.roll(np.eye(3)[y], 1, 1), eps=eps, **options, **more)


ATTACKS = {
    **{
        (f"fgsm {n}", n): partial(lambda n, net, x, y, eps, **m: fgsm(net.model, x, y, eps=eps, norm=n, **m), n)
        for n in NORMS
    },
    **{(f"bim {n}", n): in_two_steps(bim, norm=n) for n in NORMS},
    **{(f"mi_fgsm {n}", n): in_two_steps(mi_fgsm, norm=n) for n in NORMS},
    **{(f"pgd {n}", n): in_two_steps(pgd, norm=n, restarts=2, keep="best", stop=True) for n in NORMS},
    ("step_ll", "linf"): lambda net, x, y, eps, **more: step_ll(net.model, x, eps=eps, **more),
    ("r_step_ll", "linf"): lambda net, x, y, eps, **more: r_step_ll(net.model, x, eps=eps, **more),
    ("fftgsm", "linf"): towards(fftgsm),
    ("iftgsm", "linf"): lambda net, x, y, eps, **more: towards(iftgsm, alpha=eps / 2, steps=3)(net, x, y, eps, **more),
    ("feature_pgd", "linf"): lambda net, x, y, eps, **more: towards(
        feature_pgd, alpha=eps / 2, steps=3, restarts=2, threshold=0.5
    )(net, x, y, eps, **more),
}
every_attack = pytest.mark.parametrize("name, norm", ATTACKS, ids=[name for name, _ in ATTACKS])


@each_rank
@every_attack
@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(batch=st.integers(1, 4), budget=st.floats(-2, 0.5), seed=st.integers(0, 2**31))
def test_a1_a2_a3_a4_every_attack_stays_inside(name, norm, rank, batch, budget, seed):
    """A1-A4: the ball with a budget per example, a box of its own, and a mask."""
    net, rng = perceptron(rank), np.random.default_rng(seed)
    low, high = rng.choice([0.0, -1.0]), rng.choice([1.0, 1.5])
    x = rng.uniform(low, high, (batch, *SHAPES[rank])).astype(np.float32).clip(low, high)
    y = rng.integers(0, 3, batch)
    eps = (10**budget * rng.uniform(0.1, 1, batch)).astype(np.float32)
    mask = (rng.random((1, *SHAPES[rank])) < 0.7).astype(np.float32)
    found = ATTACKS[name, norm](net, x, y, eps, mask=mask, low=low, high=high)
    check_inside(found, x, column(eps, x) if norm == "linf" else eps, norm, mask, low, high)


@each_rank
def test_a5_budgets_and_steps_per_coordinate(rank):
    """A5: trips in grid cells have one budget per feature; a mask per example besides."""
    net = perceptron(rank)
    x, y = net.data(4)
    eps = np.random.default_rng(0).uniform(0, 0.3, (1, *SHAPES[rank])).astype(np.float32)
    mask = (np.random.default_rng(1).random(x.shape) < 0.5).astype(np.float32)
    for attack in (bim, pgd, mi_fgsm):
        found = attack(net.model, x, y, eps=eps, alpha=eps / 4, steps=6, mask=mask)
        check_inside(found, x, eps, "linf", mask)
    moved = np.abs(np.asarray(bim(net.model, x, y, eps=eps, alpha=eps / 4, steps=1)) - x)
    assert (moved <= eps / 4 + 1e-6).all()
    assert moved.max() > 0


@every_attack
def test_a6_no_budget_changes_no_bit(name, norm):
    """A6: eps = 0."""
    net = perceptron(4)
    x, y = net.data(5)
    free = np.ones((1, *SHAPES[4]), np.float32)
    np.testing.assert_array_equal(ATTACKS[name, norm](net, x, y, np.float32(0), mask=free), x)
    # A budget of nothing with a step of something, at an input with an exact 0.
    x[:, 0, 0] = 0
    found = pgd(net.model, x, y, eps=0.0, alpha=0.1, steps=3, norm=norm)
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("norm", NORMS)
def test_a6_no_steps_change_no_bit(norm):
    """A6: steps = 0, whichever iterate is kept."""
    net = perceptron(4)
    x, y = net.data(5)
    budget = {"eps": 0.3, "alpha": 0.1, "steps": 0, "mask": np.ones((1, *SHAPES[4]), np.float32)}
    for found in (
        bim(net.model, x, y, norm=norm, **budget),
        mi_fgsm(net.model, x, y, norm=norm, **budget),
        pgd(net.model, x, y, norm=norm, **budget, random_start=False, restarts=2, keep="best", stop=True),
        iftgsm(net.model, x, np.eye(3)[y], **budget),
    ):
        np.testing.assert_array_equal(found, x)


def gradient_of(net: Perceptron, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, net.model(x, training=False))
    return tape.gradient(loss, x).numpy()


@each_rank
def test_a7_one_step_is_the_formula(rank):
    """A7: FGSM, BIM and PGD of one step are clip(x + eps sign(gradient)) bit for bit, L2 the unit gradient."""
    net, eps = perceptron(rank), np.float32(0.07)
    x, y = net.data(8)
    gradient = gradient_of(net, x, y)
    formula = np.clip(x + eps * np.sign(gradient), 0, 1)
    np.testing.assert_array_equal(fgsm(net.model, x, y, eps=eps), formula)
    np.testing.assert_array_equal(bim(net.model, x, y, eps=eps, alpha=eps, steps=1), formula)
    np.testing.assert_array_equal(pgd(net.model, x, y, eps=eps, alpha=eps, steps=1, random_start=False), formula)
    np.testing.assert_array_equal(mi_fgsm(net.model, x, y, eps=eps, alpha=eps, steps=1), formula)
    unboxed = fgsm(net.model, x, y, eps=eps, norm="l2", low=-9, high=9)
    wanted = x + eps * gradient / column(oracles.norms(gradient, "l2"), x)
    np.testing.assert_allclose(unboxed, wanted, atol=1e-6)


@pytest.mark.parametrize("boxed", [False, True], ids=["interior", "box"])
@each_rank
@pytest.mark.parametrize("norm", NORMS)
def test_a8_linear_oracle(norm, rank, boxed):
    """A8: nobody is fooled at 0.98 of the smallest budget, everybody at 1.02, for batches of 1, 3 and 8."""
    for batch in (1, 3, 8):
        model, x, y, (low, high), best = linear_task(SHAPES[rank], batch, norm, boxed)
        assert not fooled(model, x, y).any()
        for factor, wanted in ((0.98, False), (1.02, True)):
            for random_start in (False, True):
                found = pgd(
                    model,
                    x,
                    y,
                    eps=factor * best,
                    alpha=best / 2,
                    steps=60,
                    norm=norm,
                    random_start=random_start,
                    keep="best",
                    low=low,
                    high=high,
                )
                assert (fooled(model, found, y) == wanted).all()


def test_a10_independent_implementation():
    """A10: BIM and MI-FGSM against double precision."""
    oracles.check_references()


def test_a13_alone_as_in_a_batch():
    """A13: bit-equal, random start included."""
    oracles.check_alone()


@pytest.mark.parametrize("norm", NORMS)
def test_a13_batch_size_changes_nothing(norm):
    """A13: a data set in batches of any size, the last one partial."""
    net = perceptron()
    x, y = net.data(11)
    attack = partial(pgd, net.model, eps=0.1, alpha=0.04, steps=4, norm=norm, seed=3)
    whole = attack(x, y).numpy()
    for size in (1, 4, 11, 100):
        np.testing.assert_allclose(attack_dataset(attack, x, y, batch_size=size).x, whole, atol=ROUNDING[norm], rtol=0)
    eps = np.linspace(0, 0.2, 11, dtype=np.float32)
    found = attack_dataset(lambda x, y, index: fgsm(net.model, x, y, eps=eps[index]), x, y, batch_size=4).x
    np.testing.assert_array_equal(found, fgsm(net.model, x, y, eps=eps))


def test_a_data_set_shows_progress_only_when_asked(capsys, monkeypatch):
    monkeypatch.setattr("common.progress._LINE", 0.0)
    net = perceptron()
    x, y = net.data(3)
    quiet = attack_dataset(partial(pgd, net.model, eps=0.1, alpha=0.1, steps=1), x, y, batch_size=2).x
    assert capsys.readouterr().out == ""
    shown = attack_dataset(partial(pgd, net.model, eps=0.1, alpha=0.1, steps=1), x, y, batch_size=2, progress=True).x
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["pgd: 2/3 examples", "pgd: 3/3 examples"]
    np.testing.assert_array_equal(shown, quiet)


@pytest.mark.parametrize("norm", NORMS)
def test_a14_permutation(norm):
    """A14: permuting the batch permutes the answer; with the index permuted too, also from random starts."""
    net = perceptron(4)
    x, y = net.data(9)
    order = np.random.default_rng(0).permutation(9)
    for random_start in (False, True):
        attack = partial(pgd, net.model, eps=0.2, alpha=0.1, steps=4, norm=norm, random_start=random_start)
        permuted, plain = attack(x[order], y[order], index=order), attack(x, y).numpy()
        np.testing.assert_allclose(permuted, plain[order], atol=ROUNDING[norm], rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_a15_zero_gradients_move_nothing(norm):
    """A15: rows behind dead units stay as they are beside rows that move, and nothing becomes a NaN."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu"), layers.Dense(2)])
    first, second = np.eye(4, 3) + 0.1, np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    model.set_weights([first, np.full(3, -1.1), second, np.array([1.0, 0.0])])
    x = np.float32([[0.1, 0.2, 0.1, 0.3], [0.9, 0.9, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0]])
    y = np.zeros(3, int)
    for attack in (partial(pgd, random_start=False), bim, mi_fgsm):
        found = attack(model, x, y, eps=0.3, alpha=0.1, steps=3, norm=norm).numpy()
        np.testing.assert_array_equal(found[[0, 2]], x[[0, 2]])
        assert (found[1] != x[1]).any()
        assert np.isfinite(found).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-8])
def test_vanishing_gradients_still_point_somewhere(scale):
    """The square of a gradient of 1e-20 is zero in float32; its direction is not."""
    gradient = tf.constant([[3.0, 4.0], [0.0, 0.0]]) * scale
    np.testing.assert_allclose(unit_l2(gradient), [[0.6, 0.8], [0, 0]], rtol=1e-5)


@lru_cache
def normalised_net(dropout: float) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(dropout),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def test_a16_weights_and_averages_stay():
    """A16: every attack, eager and inside a training step, leaves weights, averages and dropout seeds bit-equal."""
    model = normalised_net(0.5)
    x = np.random.default_rng(0).random((6, 4, 4, 1), dtype=np.float32)
    y = np.arange(6, dtype=np.int32) % 3
    budget = {"eps": 0.1, "alpha": 0.05, "steps": 2}
    model(x, training=True)
    before = [v.numpy() for v in model.variables]

    @tf.function
    def craft(x, y):
        return pgd(model, x, y, **budget)

    with tf.GradientTape():
        first = pgd(model, x, y, **budget)
    for attack in (bim, mi_fgsm):
        attack(model, x, y, **budget)
    step_ll(model, x, eps=0.1)
    fftgsm(model, x, np.eye(3)[y], eps=0.1)
    np.testing.assert_array_equal(craft(tf.constant(x), tf.constant(y)), first)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("outer", ["graph", "eager"])
def test_training_on_the_fly_is_training_on_precomputed_examples(norm, outer):
    """An outer tape sees a constant: weight gradients and averages as if the examples came from disk."""
    model = normalised_net(0.0)
    x = tf.random.stateless_uniform((6, 4, 4, 1), (0, 1))
    y = tf.range(6) % 3
    attack = partial(pgd, model, eps=0.2, alpha=0.1, steps=3, norm=norm)
    start = model.get_weights()

    def step(craft):
        with tf.GradientTape() as tape:
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(craft(), training=True))
        return tape.gradient(loss, model.trainable_variables)

    adversarial = attack(x, y)
    wanted, after = step(lambda: adversarial), model.get_weights()
    model.set_weights(start)
    found = (tf.function(step) if outer == "graph" else step)(lambda: attack(x, y))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    for a, b in zip(model.get_weights(), after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    model.set_weights(start)


def test_a17_targeted_is_untargeted_with_the_objective_negated():
    """A17: through `search`, bit-equal."""
    net = perceptron()
    x, y = net.data(8)
    target = (y + 1) % 3
    x, plain = tf.constant(x), untargeted_ce(net.model, {"y": tf.constant(target)})

    def negated(x):
        score, done = plain(x)
        return -score, ~done

    run = lambda objective: search(objective, ascent(tf.sign, 0.03), linf(x, 0.1), x, 5)  # noqa: E731
    ours, theirs = run(targeted_ce(net.model, {"target": tf.constant(target)})), run(negated)
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    found = bim(net.model, x, target, eps=0.1, alpha=0.03, steps=5, targeted=True)
    np.testing.assert_array_equal(found, ours.x)


def sign_flipped(monkeypatch):
    plain = updates.ascent
    flipped = lambda direction, *args, **options: plain(lambda g: -direction(g), *args, **options)  # noqa: E731
    monkeypatch.setattr(updates, "ascent", flipped)


def projection_dropped(monkeypatch):
    bare = lambda make: lambda *args: make(*args)._replace(project=lambda x: x)  # noqa: E731
    monkeypatch.setattr(budget, "BALLS", {norm: bare(make) for norm, make in budget.BALLS.items()})


def momentum_of_signs(monkeypatch):
    monkeypatch.setattr(updates, "scaled_l1", tf.sign)


def last_iterate_unscored(monkeypatch):
    monkeypatch.setattr(loop.Attack, "scored", property(lambda attack: False))


def maximum_over_the_batch(monkeypatch):
    monkeypatch.setattr(updates, "normalize", lambda x, order: x / tf.reduce_max(tf.abs(x)))


def restart_keeps_last(monkeypatch):
    monkeypatch.setattr(loop, "merge", lambda inputs, a, b, selection=None: a)


MUTANTS = {
    sign_flipped: oracles.check_oracle,
    projection_dropped: oracles.check_budget,
    momentum_of_signs: oracles.check_references,
    last_iterate_unscored: oracles.check_last_iterate,
    maximum_over_the_batch: oracles.check_alone,
    restart_keeps_last: oracles.check_restarts,
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a18_the_check_passes_and_kills_its_mutant(mutant, monkeypatch):
    """A18: 6 of 6 killed, each by an assertion of the check that the suite itself passes."""
    check = MUTANTS[mutant]
    check()
    mutant(monkeypatch)
    # What was compiled for the check's model before knows no mutant.
    monkeypatch.setattr(compile, "_compiled", compile.PerModel())
    with pytest.raises(AssertionError):
        check()


def traces(model) -> int:
    return len(compile._compiled[model])


@pytest.mark.parametrize("norm", NORMS)
def test_a19_one_trace_for_every_budget_mask_length_and_batch(norm):
    """A19: at most 2 traces over 5 budgets, 3 masks, 2 numbers of steps and 2 batch sizes."""
    net = Perceptron((2, 3), seed=1)
    calls = 0

    class Counting(keras.Model):
        def call(self, x):
            nonlocal calls
            calls += 1
            return net.model(x)

    model = Counting()
    budgets = [0.1, np.float32(0.2), tf.constant(0.3), "per example", "per example again"]
    masks = [None, np.ones((1, 2, 3), np.float32), "per example"]
    for batch in (4, 7):
        x, y = net.data(batch)
        for eps in budgets:
            eps = np.linspace(0.1, 0.2, batch, dtype=np.float32) if isinstance(eps, str) else eps
            for mask in masks:
                mask = (x > 0.5) if isinstance(mask, str) else mask
                for steps in (2, 5):
                    pgd(model, x, y, eps=eps, alpha=0.05, steps=steps, norm=norm, seed=steps, mask=mask)
    assert traces(model) <= 2
    # Two calls in the graph of each trace, the gradient's and the last score's, and two in the look at the answers.
    assert calls <= 2 * 2 + 2


BAD = {
    "not finite": ({"x": lambda x: np.where(x > 0.9, np.nan, x)}, "finite"),
    "infinite": ({"x": lambda x: np.where(x > 0.9, np.inf, x)}, "finite"),
    "0 to 255": ({"x": lambda x: x * 255}, r"\[low, high\]"),
    "below": ({"x": lambda x: x - 0.5}, r"\[low, high\]"),
    "8 bits": ({"x": lambda x: (x * 255).astype(np.uint8)}, "uint8"),
    "negative eps": ({"eps": -0.1}, "eps"),
    "eps not a number": ({"eps": np.nan}, "eps"),
    "infinite eps": ({"eps": np.inf}, "eps"),
    "negative alpha": ({"alpha": -0.1}, "alpha"),
    "eps of another batch": ({"eps": np.full(3, 0.1)}, "eps must broadcast"),
    "eps of another rank": ({"eps": np.full((2, 2, 2), 0.1)}, "rank 2"),
    "mask of another shape": ({"mask": np.ones((1, 5))}, "mask must broadcast"),
    "mask of another rank": ({"mask": np.ones((1, 1, 12))}, "rank 2"),
    "negative steps": ({"steps": -1}, "steps"),
    "label too large": ({"y": lambda y: y + 3}, "labels must be 0 to 2"),
    "label negative": ({"y": lambda y: y - 3}, "labels must be 0 to 2"),
    "labels one-hot": ({"y": lambda y: np.eye(3)[y]}, "one target or label per example"),
    "labels too few": ({"y": lambda y: y[:2]}, "one target or label per example"),
    "index too short": ({"index": [1]}, "index"),
    "unknown norm": ({"norm": "linfty"}, "norm must be one of linf, l2, l1"),
    "unknown keep": ({"keep": "strongest"}, "keep"),
    "no restarts": ({"restarts": 0}, "restarts"),
    "l2 per coordinate": ({"norm": "l2", "eps": np.full((1, 12), 0.1)}, "one number per example"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    net = perceptron()
    x, y = net.data(4)
    change, message = BAD[case]
    call = {"x": x, "y": y, "eps": 0.1, "alpha": 0.05, "steps": 2}
    call |= {name: value(call[name]) if callable(value) else value for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        pgd(net.model, **call)


def test_every_attack_checks_its_input():
    net = perceptron()
    x, y = net.data(4)
    for attack in ATTACKS.values():
        with pytest.raises(ValueError, match="Divide 8-bit images"):
            attack(net, x * 255, y, np.float32(0.1))


def test_double_precision_and_lists_are_welcome():
    net = perceptron()
    x, y = net.data(4)
    found = fgsm(net.model, x.astype(np.float64), y.tolist(), eps=0.1)
    np.testing.assert_array_equal(found, fgsm(net.model, x.tolist(), y, eps=0.1))
    assert found.dtype == tf.float32
    assert fgsm(net.model, x[:0], y[:0], eps=0.1).shape == (0, 12)


def test_seeds_decide():
    """C1, C2: the same seed gives the same bits, another one others; an integer seed and its pair agree."""
    net = perceptron()
    x, y = net.data(6)
    attack = partial(pgd, net.model, x, y, eps=0.2, alpha=0.05, steps=2)
    np.testing.assert_array_equal(attack(seed=5), attack(seed=5))
    np.testing.assert_array_equal(attack(seed=5), attack(seed=tensors.seed_pair(5)))
    assert (attack(seed=5).numpy() != attack(seed=6).numpy()).any(axis=1).all()
    assert (attack(index=np.arange(6) + 6).numpy() != attack().numpy()).any(axis=1).all()


def rivals(net: Perceptron, x: np.ndarray, y: np.ndarray, count: int, seed: int) -> list[Result]:
    """Each restart of PGD on its own."""
    x, y = tf.constant(x), tf.constant(y)
    space = linf(x, 0.05)
    out = []
    for restart in range(count):
        pair = tf.random.fold_in(tensors.seed_pair(seed), restart)
        start = space.random_point(tensors.example_seeds(pair, tf.range(len(x))))
        out.append(search(untargeted_ce(net.model, {"y": y}), ascent(tf.sign, 0.02), space, start, 2))
    return out


def test_restarts_keep_the_strongest_of_each_example():
    """Success first, then loss; and not simply the first or the last run."""
    oracles.check_restarts()
    net = perceptron()
    x, y = net.data(64)
    runs = rivals(net, x, y, 4, seed=2)
    best = [max(range(4), key=lambda r: (bool(runs[r].success[i]), float(runs[r].value[i]))) for i in range(64)]
    wanted = np.stack([runs[r].x[i] for i, r in enumerate(best)])
    found = pgd(net.model, x, y, eps=0.05, alpha=0.02, steps=2, restarts=4, seed=2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(set(best)) == 4


def test_ranks_tell_large_scores_apart_and_put_success_first():
    x = tf.zeros((1, 1))
    result = lambda value, success: worst_case({}, x, tf.constant([value]), tf.constant([success])).numpy()[0]  # noqa: E731
    assert result(1e4, False) < result(1.001e4, False)
    assert result(float("inf"), False) < result(-1e30, True)
    assert result(-1e6, True) < result(-0.99e6, True)
    lost = Result(x + 1, tf.constant([float("nan")]), tf.constant([False]))
    kept = Result(x, tf.constant([-5.0]), tf.constant([False]))
    for a, b in ((lost, kept), (kept, lost)):
        assert merge({}, a, b).value.numpy() == [-5.0]


def test_keep_best_never_loses_to_the_last():
    """Of all iterates the strongest: on an oscillating attack strictly better somewhere."""
    net = perceptron()
    x, y = net.data(64)
    attack = partial(pgd, net.model, x, y, eps=0.3, alpha=0.3, steps=7, random_start=False)
    score = lambda found: untargeted_ce(net.model, {"y": tf.constant(y)})(tf.constant(found))  # noqa: E731
    (last, last_done), (best, best_done) = score(attack()), score(attack(keep="best"))
    assert not (last_done & ~best_done).numpy().any()
    same = (last_done == best_done).numpy()
    assert (best.numpy() >= last.numpy() - 1e-6)[same].all()
    assert (best.numpy() > last.numpy() + 1e-3).any()


def first_success(runs: list[np.ndarray], reached: list[np.ndarray]) -> np.ndarray:
    """Per example the iterate at which the goal is first reached, else the last."""
    when = np.array(reached)
    first = np.where(when.any(0), when.argmax(0), len(runs) - 1)
    return np.stack([runs[k][i] for i, k in enumerate(first)])


@pytest.mark.parametrize("attack", [bim, mi_fgsm, partial(pgd, seed=4)], ids=["bim", "mi_fgsm", "pgd"])
def test_stop_leaves_an_example_where_it_first_succeeds(attack):
    net = perceptron()
    x, y = net.data(32)
    attack = partial(attack, net.model, x, y, eps=0.15, alpha=0.03)
    runs = [attack(steps=k).numpy() for k in range(8)]
    reached = [fooled(net.model, run, y) for run in runs]
    assert 0 < reached[-1].sum() < 32
    stopped = attack(steps=7, stop=True).numpy()
    np.testing.assert_array_equal(stopped, first_success(runs, reached))
    assert (fooled(net.model, stopped, y) >= reached[-1]).all()


def test_stop_ends_the_loop_early():
    calls = 0

    def objective(x):
        nonlocal calls
        calls += 1
        return tf.reduce_sum(x, 1), tf.reduce_sum(x, 1) > 1

    x = tf.fill((2, 4), 0.2)
    result = search(objective, ascent(tf.sign, 0.1), linf(x, 0.5), x, 100, stop=True)
    assert result.success.numpy().all()
    assert calls <= 4


def test_feature_target_attacks():
    """F1: FFTGSM is its formula; in small steps the cosine never falls; a threshold stops each example on its own."""
    net = Perceptron((12,), classes=5, seed=12)
    x, _ = net.data(24)
    target = np.random.default_rng(5).normal(size=(24, 5)).astype(np.float32)

    def cosine(x):
        e = net.logits(np.asarray(x, np.float64))
        return (e * target).sum(1) / np.linalg.norm(e, axis=1) / np.linalg.norm(target, axis=1)

    clean = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(clean)
        e = net.model(clean)
        value = tf.reduce_sum(e * target, 1) / tf.norm(e, axis=1) / np.linalg.norm(target, axis=1)
    gradient = tape.gradient(value, clean).numpy()
    one = fftgsm(net.model, x, target, eps=0.02)
    np.testing.assert_allclose(one, np.clip(x + np.float32(0.02) * np.sign(gradient), 0, 1), atol=1e-6)
    np.testing.assert_array_equal(one, iftgsm(net.model, x, target, eps=0.02, alpha=0.02, steps=1))

    runs = [iftgsm(net.model, x, target, eps=0.1, alpha=0.01, steps=k).numpy() for k in range(11)]
    values = np.array([cosine(run) for run in runs])
    assert (values[-1] >= values[0] - 1e-6).all()
    assert (np.diff(values, axis=0) >= -1e-3).all()

    for threshold in (0.3, np.linspace(-0.5, 0.9, 24, dtype=np.float32)):
        stopped = iftgsm(net.model, x, target, eps=0.1, alpha=0.01, steps=10, threshold=threshold).numpy()
        np.testing.assert_array_equal(stopped, first_success(runs, list(values > threshold)))
    objective = cosine_to(net.model, {"embedding": target, "threshold": 0.3})
    np.testing.assert_allclose(objective(clean)[0], values[0], atol=1e-6)
    # Embeddings are told apart by direction alone.
    np.testing.assert_allclose(iftgsm(net.model, x, target * 9, eps=0.1, alpha=0.01, steps=10), runs[-1], atol=1e-6)


def test_least_likely_class_attacks():
    """Step-LL is its formula; R+Step-LL walks half its budget to a random corner, then steps from there."""
    net = perceptron()
    x, _ = net.data(16)
    eps = np.float32(0.08)
    target = net.logits(x.astype(np.float64)).argmin(1).astype(np.int32)
    formula = np.clip(x - eps * np.sign(gradient_of(net, x, target)), 0, 1)
    np.testing.assert_array_equal(step_ll(net.model, x, eps=eps), formula)

    seeds = tensors.example_seeds(tf.random.fold_in(tensors.seed_pair(3), 0), tf.range(16))
    corner = np.sign(tensors.uniform(seeds, (12,), -1.0, 1.0))
    for start_eps in (None, 0.02, eps):
        first = np.float32(eps / 2 if start_eps is None else start_eps)
        start = np.clip(x + first * corner, 0, 1)
        wanted = np.clip(start - (eps - first) * np.sign(gradient_of(net, start, target)), 0, 1)
        found = r_step_ll(net.model, x, eps=eps, start_eps=start_eps, seed=3)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(ValueError, match="start_eps"):
        r_step_ll(net.model, x, eps=eps, start_eps=0.1)


def test_attacks_run_inside_a_function():
    """Eager and in the caller's graph: the same answer."""
    net = perceptron(4)
    x, y = net.data(5)
    free = np.ones((1, *SHAPES[4]), np.float32)
    for name in ("fgsm linf", "mi_fgsm l2", "pgd l1", "r_step_ll", "iftgsm"):
        norm = name.split()[-1] if " " in name else "linf"
        attack = ATTACKS[name, norm]
        inside = tf.function(lambda x, norm=norm, attack=attack: attack(net, x, y, tf.constant(0.1), mask=free))
        eager = attack(net, x, y, np.float32(0.1), mask=free)
        np.testing.assert_allclose(inside(tf.constant(x)), eager, atol=ROUNDING[norm], rtol=0)


def test_compiled_attacks_are_forgotten_with_their_model():
    net = Perceptron((12,), seed=2)
    x, y = net.data(2)
    fgsm(net.model, x, y, eps=0.1)
    step_ll(net.model, x, eps=0.1)
    gone = weakref.ref(net.model)
    before = len(compile._compiled)
    del net
    gc.collect()
    assert gone() is None
    assert len(compile._compiled) < before


def test_compiled_attacks_follow_the_weights():
    """Weights enter as variables: a model trained on after its first attack is attacked as it now is."""
    net, other = Perceptron((12,), seed=2), Perceptron((12,), seed=20)
    x, y = net.data(4)
    fgsm(net.model, x, y, eps=0.1)
    net.model.set_weights(other.model.get_weights())
    np.testing.assert_array_equal(fgsm(net.model, x, y, eps=0.1), fgsm(other.model, x, y, eps=0.1))


def test_objectives_without_a_gradient_are_refused():
    x = tf.zeros((2, 3))
    blind = lambda x: (tf.zeros(2), tf.zeros(2, tf.bool))  # noqa: E731
    with pytest.raises(ValueError, match="no gradient"):
        search(blind, ascent(tf.sign, 0.1), linf(x, 0.1), x, 2)


def test_objectives_may_gather():
    """A gather makes the gradient sparse; the untouched coordinates stay."""
    x = tf.fill((3, 4), 0.5)
    gathering = lambda x: (tf.gather(tf.reshape(x, [-1]), [0, 5, 10]), tf.zeros(3, tf.bool))  # noqa: E731
    flat = lambda x: (tf.reduce_sum(tf.gather(x, [0, 1, 2]), 1), tf.zeros(3, tf.bool))  # noqa: E731
    found = search(gathering, ascent(tf.sign, 0.1), linf(x, 0.1), x, 1).x
    np.testing.assert_allclose(found, 0.5 + 0.1 * np.eye(3, 4), atol=1e-6)
    np.testing.assert_allclose(search(flat, ascent(tf.sign, 0.1), linf(x, 0.1), x, 1).x, 0.6, atol=1e-6)


def test_b11_canary_logits_made_larger_hide_nothing_from_the_margin():
    net = Perceptron((6,), seed=3)
    x = np.random.default_rng(9).uniform(0.3, 0.7, (200, 6)).astype(np.float32)
    y = np.argmax(net.model(x), axis=1).astype(np.int32)

    def robust(model, loss):
        moved = pgd(model, x, y, eps=0.25, alpha=0.05, steps=20, loss=loss)
        return float(np.mean(np.argmax(net.model(moved), axis=1) == y))

    def loud(x):
        return 3000.0 * net.model(x)

    assert 0.05 < robust(net.model, "ce") < 0.95
    assert robust(loud, "margin") <= robust(net.model, "margin") + 0.01 <= robust(net.model, "ce") + 0.02
    # What the canary is for: cross-entropy sees no slope, and the model looks robust.
    assert robust(loud, "ce") > robust(net.model, "ce") + 0.2


def test_stopping_restarts_keep_the_first_success():
    net = perceptron()
    x = np.random.default_rng(9).uniform(0.0, 1.0, (200, 12)).astype(np.float32)
    y = np.argmax(net.model(x), axis=1).astype(np.int32)
    settings = {"eps": 0.25, "alpha": 0.1, "steps": 2, "stop": True}
    once, often = pgd(net.model, x, y, **settings).numpy(), pgd(net.model, x, y, **settings, restarts=6).numpy()
    fooled = np.argmax(net.model(once), axis=1) != y
    np.testing.assert_array_equal(often[fooled], once[fooled])
    assert (np.argmax(net.model(often), axis=1) != y).sum() > fooled.sum() > 0


def test_steps_may_differ_between_examples():
    net = perceptron()
    x = np.random.default_rng(9).uniform(0.3, 0.7, (5, 12)).astype(np.float32)
    y = np.argmax(net.model(x), axis=1).astype(np.int32)
    steps = tf.constant([0, 1, 2, 3, 7])
    objective, space = untargeted_ce(net.model, {"y": y}), linf(tf.constant(x), 0.2)
    found = search(objective, ascent(tf.sign, 0.02), space, tf.constant(x), steps)
    for row, count in enumerate(steps.numpy()):
        alone = bim(net.model, x[row : row + 1], y[row : row + 1], eps=0.2, alpha=0.02, steps=count)
        np.testing.assert_allclose(found.x[row], alone[0], atol=1e-6)


def test_rules_without_gradients_run_in_the_same_loop():
    """A random search only needs `needs_gradient=False` and a selection."""
    net = perceptron()
    x, y = net.data(6)
    x = tf.constant(x)
    space = l2(x, 0.5)

    def step(key, x, score, done, gradient):
        assert gradient.shape == x.shape
        return x + 0.1 * tensors.normal(tensors.example_seeds(key, tf.range(6)), (12,)), key + 1

    rule = UpdateRule(lambda x: tf.constant([0, 1]), step, needs_gradient=False)
    objective = untargeted_ce(net.model, {"y": tf.constant(y)})
    found = search(objective, rule, space, x, 20, selection=worst_case)
    check_inside(found.x, x.numpy(), 0.5, "l2")
    assert (found.value >= objective(x)[0]).numpy().all()


def test_crafting_is_silent(capfd):
    net = Perceptron((12,), seed=30)
    x, y = net.data(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgd(net.model, x, y, eps=0.1, alpha=0.1, steps=2, restarts=2, keep="best")
    assert capfd.readouterr().out == ""
