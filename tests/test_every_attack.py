"""A1 to A20 where they are asked of every attack value of the suite, the apps' included.

What they ask of one formula (A7 to A12, A17, A18) is in the tests of that formula.
"""

import numpy as np
import pytest
import tensorflow as tf

from common.attacks import compile, run, run_dataset
from common.attacks.dataset import with_rows
from tests.helpers.attack_oracles import LIMITS, norms
from tests.helpers.every_attack import CASES, COUNT, case

every = pytest.mark.parametrize("name", CASES)
# Steps in another norm of a rule that XLA compiles in one, and projections that it compiles for PGD.
SAME_UNDER_XLA = {
    *(f"{rule}_{norm}" for rule in ("fgsm", "bim", "mi_fgsm") for norm in ("l1", "l2")),
    *(f"trips_{rule}_{norm}" for rule in ("st_fgsm", "st_ifgsm") for norm in ("l1", "l2")),
}


def inputs_of(bound, rows=None, **changed):
    """The inputs of an attack, or those of some of its examples at their places in the data set."""
    inputs = {"seed": 3, **bound.inputs, "index": np.arange(COUNT, dtype=np.int32), **changed}
    own = {} if rows is None else with_rows(inputs, COUNT)
    return inputs | {name: np.asarray(value)[rows] for name, value in own.items()}


def found(bound, rows=None, **changed):
    return np.asarray(run(bound.attack, bound.model, inputs_of(bound, rows, **changed)))


@every
def test_a1_to_a6_inside_ball_and_box_and_still_without_a_budget(name):
    """A1, A2: the ball; A3: the box, and nothing but numbers; A5: each example in its own; A6: nothing without one."""
    of = case(name)
    moved = found(of.bound)
    whole, clean = of.whole(moved), of.clean
    assert np.isfinite(whole).all() and whole.dtype == np.float32 and whole.shape == clean.shape
    low, high = (np.asarray(of.bound.inputs.get(side, end)) for side, end in (("low", 0.0), ("high", 1.0)))
    assert (moved >= low).all() and (moved <= high).all()
    assert (whole != clean).any()
    np.testing.assert_array_equal(found(of.bound, **of.still), of.bound.inputs["x"])
    if of.norm is None:
        return
    absolute, relative = LIMITS[of.norm]
    assert (norms(whole - clean, of.norm) <= of.eps * (1 + relative) + absolute).all()
    if of.bound.finish is None and of.alone:
        own = np.linspace(0, of.eps, COUNT, dtype=np.float32)
        start = {"start_eps": own / 2} if "start_eps" in of.bound.inputs else {}
        each = norms(found(of.bound, eps=own, **start) - clean, of.norm)
        assert (each <= own * (1 + relative) + absolute).all()


@every
def test_a13_a14_an_example_alone_as_in_a_batch_in_any_order(name):
    """And so in a data set, refilled or not; up to the rounding of sums over batches of another size."""
    of = case(name)
    if not of.alone:
        pytest.skip("its rows share their loss")
    whole = found(of.bound)
    rows = np.array([7, 2, 9, 0])
    np.testing.assert_allclose(found(of.bound, rows), whole[rows], atol=2e-5, rtol=0)
    result = run_dataset(of.bound.attack, of.bound.model, inputs_of(of.bound), batch_size=4)
    np.testing.assert_allclose(result.x, whole, atol=2e-5, rtol=0)
    assert (result.utilisation is None) == (of.bound.attack.stop is None)


@every
def test_a15_a16_no_gradient_moves_nothing_and_the_model_stays(name):
    """A15: with all weights zero nothing moves that does not begin at random, and no NaN appears; A16: weights and
    averages are what they were."""
    of = case(name)
    model = of.bound.model
    before = model.get_weights()
    found(of.bound)
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))
    try:
        model.set_weights([np.zeros_like(weight) for weight in before])
        moved = found(of.bound)
    finally:
        model.set_weights(before)
    assert np.isfinite(moved).all()
    if not of.drawn:
        np.testing.assert_array_equal(moved, of.bound.inputs["x"])


@every
def test_a19_one_trace(name):
    """A19: over five budgets, three numbers of steps and two batch sizes."""
    of = case(name)
    found(of.bound)
    compiled = compile._compiled[of.bound.model]
    before = len(compiled)
    budgets = [key for key in ("eps", "alpha", "start_eps") if key in of.bound.inputs]
    for scale, steps, count in ((0.2, 2, 4), (0.4, 3, 7), (0.6, 1, 4), (0.8, 2, 7), (1, 3, 4)):
        changed = {key: scale * np.float32(of.bound.inputs[key]) for key in budgets}
        found(of.bound, np.arange(count) if of.alone else None, steps=steps, **changed)
    assert len(compiled) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in SAME_UNDER_XLA])
def test_a20_under_xla(name):
    """A20: as many successes, up to one; where none is defined, the same examples up to rounding, or the same ball."""
    of = case(name)
    if not of.fuses:
        pytest.skip("XLA lacks one of its operations")
    inputs = {key: tf.convert_to_tensor(value) for key, value in inputs_of(of.bound).items() if value is not None}

    def attack():
        return run(of.bound.attack, of.bound.model, inputs)

    plain, fused = found(of.bound), np.asarray(tf.function(attack, jit_compile=True)())
    assert np.isfinite(fused).all()
    if of.wrong is not None:
        # XLA draws other numbers, so that of eleven examples some have other starts.
        assert abs(of.wrong(plain).sum() - of.wrong(fused).sum()) <= (3 if of.drawn else 0.02 * COUNT + 1)
    elif not of.drawn:
        assert (np.abs(plain - fused).max(axis=tuple(range(1, plain.ndim))) < 1e-3).mean() >= 0.9
    else:
        assert (norms(fused - of.clean, of.norm) <= of.eps * (1 + LIMITS[of.norm][1]) + LIMITS[of.norm][0]).all()
        assert (fused != of.clean).any()
