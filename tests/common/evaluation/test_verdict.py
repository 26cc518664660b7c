"""The verdict: a bound that its own examples prove, mechanisms named, and cards that show when they were changed."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from common.attacks import apgd, bpda
from common.attacks.autoattack import within
from common.errors import UserError
from common.evaluation import card
from common.evaluation.verdict import judge
from common.files import sha256
from tests.helpers.digit_defences import Hidden, Levels, Mean, Noisy, classifier, digits

EPS = 0.1
_, _, X, Y = digits()
X, Y = X[:60], Y[:60]


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def found(model):
    return judge(model, X, Y, eps=EPS, planted=8, batch_size=64)


def answers(model, x):
    return np.argmax(np.asarray(model(tf.constant(x), training=False)), axis=1)


@pytest.mark.slow
def test_the_bound_is_what_its_examples_prove(model, found):
    assert found.x.dtype == found.adversarial.dtype == np.uint8
    moved = (found.adversarial / np.float32(255)).astype(np.float32)
    right = answers(model, X) == Y
    assert found.clean.value == right.mean() and found.clean.value > 0.9
    stands = right & (answers(model, moved) == Y)
    assert found.robust.value == stands.mean() and found.robust.n == 60
    assert (found.broken == (right & ~stands)).all() and ((found.broken_by >= 0) == found.broken).all()
    assert within(X, moved, "linf", EPS, 0, 1).all()
    assert 0.1 < found.robust.value < found.first.value <= found.clean.value
    assert sum(step.new for step in found.tried) == found.broken.sum()


@pytest.mark.slow
def test_a_sound_model_raises_no_doubt(found):
    assert found.mechanism == "none" and not found.inconclusive
    # Among 64 coordinates paths end in many places, and further restarts may find something yet.
    assert set(found.failed) <= {"B5"}
    assert [check.name for check in found.checks] == [f"B{number}" for number in (*range(1, 15), 16)]
    assert "At most" in found.sentence and "AutoAttack (fast)" in found.sentence and "robust" not in found.sentence
    radii = sorted(found.curve)
    assert found.curve[radii[-1]].value <= 0.1 and radii[-1] == 1.0


def soft_levels(x):
    """`Levels` with a slope, for who has read it."""
    above = tf.sigmoid((x[..., None] - [0.2, 0.4, 0.6, 0.8]) / 0.05)
    return tf.reshape(above, [-1, 8, 8, 4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mechanism"), [("softmax", "scaled logits"), ("levels", "non-differentiable"), ("noisy", "random")]
)
def test_planted_defences_are_named_and_broken(model, name, mechanism):
    """B15: no more is left than an attack by hand leaves, but for 3 points and one example."""
    levels = bpda(Levels(), soft_levels)
    defence, by_hand = {
        "softmax": lambda: (classifier(after=[Hidden()]), model),
        "levels": lambda: (classifier(Levels(), Mean()), lambda x: model(tf.reduce_mean(levels(x), -1, True))),
        "noisy": lambda: (classifier(Noisy()), model),
    }[name]()
    x, y = X[:40], Y[:40]
    hidden = judge(defence, x, y, eps=EPS, planted=0, batch_size=64)
    assert hidden.mechanism == mechanism and "hides from gradients" in hidden.sentence
    assert {"softmax": "B8", "levels": "B7", "noisy": "B9"}[name] in hidden.failed
    options = {"eps": 25 / 255, "loss": "margin", "stop": False}
    found = np.rint(255 * apgd(by_hand, tf.constant(x), y, restarts=3, **options)) / np.float32(255)
    stands = [(answers(defence, x) == y) & (answers(defence, found) == y) for _ in range(hidden.draws)]
    assert hidden.robust.value <= np.mean(stands) + 0.03 + 1 / 40, hidden.sentence


@pytest.mark.slow
def test_a_function_without_slope_is_inconclusive(model):
    stopped = judge(lambda x: tf.stop_gradient(model(x)), X[:20], Y[:20], eps=EPS, batch_size=64)
    assert stopped.inconclusive and "no slope was found" in stopped.sentence
    assert stopped.mechanism == "non-differentiable" and stopped.robust.value < stopped.clean.value


@pytest.mark.slow
def test_a_detector_has_to_be_passed(model):
    """Success is wrong and accepted; the attack that has to pass it finds less than one that need not."""

    def detector(x):
        # Coarse: how much neighbouring pixels differ.
        return tf.reduce_mean(tf.abs(x[:, 1:] - x[:, :-1]), axis=[1, 2, 3]) - 0.33

    guarded = judge(model, X, Y, eps=EPS, detector=detector, planted=8, batch_size=64)
    assert guarded.mechanism == "rejecting" and guarded.false_positives.value == float((detector(X).numpy() > 0).mean())
    moved = tf.constant(guarded.adversarial / np.float32(255), tf.float32)
    wrong = (answers(model, moved) != Y) & (detector(moved).numpy() <= 0)
    right = (answers(model, X) == Y) & (detector(X).numpy() <= 0)
    assert guarded.robust.value == (right & ~wrong).mean() < guarded.clean.value


def test_what_is_refused(model):
    with pytest.raises(UserError, match="no example rightly"):
        judge(model, X[:8], (answers(model, X[:8]) + 1) % 10, eps=EPS)
    for options, message in (
        ({"eps": 0.0}, "above 0"),
        ({"eps": 0.001}, "less than one grey level"),
        ({"eps": EPS, "x": X * 255}, r"\[0, 1\]"),
        ({"eps": EPS, "y": Y + 5}, "labels must be 0 to 9"),
    ):
        given = {"x": X, "y": Y} | options
        with pytest.raises(ValueError, match=message):
            judge(model, given.pop("x"), given.pop("y"), **given)


@pytest.fixture(scope="module")
def folder(model, found, tmp_path_factory):
    place = tmp_path_factory.mktemp("card")
    card.write(found, model, place, data="digits", seed=0)
    return place


@pytest.mark.slow
def test_a_card_holds_for_its_model(model, found, folder):
    checked = card.verify(folder / "card.json", model)
    assert checked.holds and checked.robust == found.robust and checked.close == 0
    text = (folder / "card.md").read_text()
    assert found.sentence in text and "B16" in text
    assert (folder / "examples.npz").stat().st_size < 4e6 * 60 / 1000


def forge(told, folder):
    """Write a card with its hashes made anew."""
    told["examples"]["sha256"] = sha256(folder / "examples.npz")
    told["digest"] = card._digest(told)
    (folder / "card.json").write_text(json.dumps(told))


def changed_pixel(rng, told, arrays, model):
    place = tuple(rng.integers(side) for side in arrays["steps"].shape)
    arrays["steps"][place] ^= 1


def changed_move(rng, told, arrays, model):
    place = tuple(rng.integers(side) for side in arrays["moved"].shape)
    arrays["moved"][place] ^= 1


def wrong_label(rng, told, arrays, model):
    row = rng.integers(len(arrays["y"]))
    arrays["y"][row] = (arrays["y"][row] + rng.integers(1, 10)) % 10


def outside(rng, told, arrays, model):
    """Hidden as well as can be: the hashes are made anew."""
    row = rng.integers(len(arrays["moved"]))
    x = np.cumsum(arrays["steps"], axis=2, dtype=np.uint8)[arrays["rows"][row]].astype(int)
    place = tuple(rng.integers(side) for side in x.shape)
    arrays["moved"][row][place] = 60 if x[place] < 128 else -60
    told["forged"] = True


def overstated(rng, told, arrays, model):
    shift = rng.choice([-1, 1]) * rng.integers(1, 10) / 60
    told["robust"]["value"] = float(np.clip(told["robust"]["value"] + shift, 0, 1))
    told["robust"]["low"] = told["robust"]["high"] = told["robust"]["value"]
    told["forged"] = True


def changed_weight(rng, told, arrays, model):
    layer = model.get_layer(rng.choice(["lifted", "read_out"]))
    weights = layer.get_weights()
    kernel = weights[0]
    place = tuple(rng.integers(side) for side in kernel.shape)
    kernel[place] = np.nextafter(kernel[place], np.float32(10))
    layer.set_weights(weights)


@pytest.mark.slow
@pytest.mark.parametrize("change", [changed_pixel, changed_move, wrong_label, outside, overstated, changed_weight])
def test_b17_each_change_is_seen_100_times_of_100(model, folder, tmp_path, change):
    kept = model.get_weights()
    seen = 0
    for number in range(100):
        rng = np.random.default_rng(number)
        told = json.loads((folder / "card.json").read_text())
        with np.load(folder / "examples.npz") as held:
            arrays = {name: held[name].copy() for name in held}
        change(rng, told, arrays, model)
        np.savez(tmp_path / "examples.npz", **arrays)
        if told.pop("forged", False):
            forge(told, tmp_path)
        (tmp_path / "card.json").write_text(json.dumps(told))
        seen += not card.verify(tmp_path / "card.json", model).holds
        model.set_weights(kept)
    assert seen == 100


@pytest.mark.slow
def test_a_forged_label_changes_the_count(model, folder, tmp_path):
    """With all hashes made anew a wrong label still shows: that example is answered wrongly from the start."""
    told = json.loads((folder / "card.json").read_text())
    with np.load(folder / "examples.npz") as held:
        arrays = {name: held[name].copy() for name in held}
    arrays["y"][0] = (arrays["y"][0] + 1) % 10
    np.savez(tmp_path / "examples.npz", **arrays)
    forge(told, tmp_path)
    assert not card.verify(tmp_path / "card.json", model).holds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("{}", "is no card"),
        ('{"format": "card of a verdict, 1"}', "is not a whole card"),
    ],
)
def test_what_is_no_card(model, tmp_path, text, message):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        card.verify(tmp_path / "card.json", model)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_examples_that_are_not_there_or_no_examples(model, folder, tmp_path):
    shutil.copy(folder / "card.json", tmp_path)
    with pytest.raises(UserError, match="lies beside its card"):
        card.verify(tmp_path / "card.json", model)
    np.savez(tmp_path / "examples.npz", x=np.zeros(3))
    (problem,) = card.verify(tmp_path / "card.json", model).problems
    assert "examples were changed" in problem
    told = json.loads((folder / "card.json").read_text())
    for content, message in ((None, "holds no examples of a card"), (b"PK", "not a readable")):
        if content is not None:
            (tmp_path / "examples.npz").write_bytes(content)
        forge(told, tmp_path)
        with pytest.raises(UserError, match=message):
            card.verify(tmp_path / "card.json", model)
