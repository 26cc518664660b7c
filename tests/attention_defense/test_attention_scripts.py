"""What each script does of its own, on an untrained network and on stubs of those before it, and what they refuse."""

from pathlib import Path

import keras
import numpy as np
import pytest

from attention_defense import analyse, attack, explain, run_all, train
from attention_defense.attack import Victim, load_test_set, load_victim
from attention_defense.attacks.table import Training
from attention_defense.evaluation import analysis
from attention_defense.evaluation.lime_maps import lime_map
from common.errors import UserError
from common.runs.record import read_table
from common.training import checkpoints

EPS = 8 / 255


@pytest.fixture(scope="module")
def case(model):
    """Forty images of 8 bits, as floats, that an untrained network answers rightly; of most the object is known."""
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(40, 16, 16, 3)).astype(np.float32) / np.float32(255)
    y = model(x).numpy().argmax(axis=1).astype(np.int32)
    masks = np.zeros((40, 16, 16), bool)
    for row, mask in enumerate(masks[:30]):
        mask[2 : 6 + row // 4, 3:9] = True
    picked = Victim(model, "toy", None, Training())
    return analyse.Case(picked, x, y, masks, analysis.compute_attention(model, x, y), analyse.Options(eps=EPS))


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(analysis, "_REFITS", 20)


def test_accuracies_go_together(model, case, run):
    options = attack.Options(
        eps=(1 / 255,), curve=(2 / 255, 1.0), n_slow=20, batch_size=40, attack=("fgsm", "pgd20", "noise")
    )
    y = np.where(np.arange(40) < 4, (case.y + 1) % 4, case.y).astype(np.int32)
    evaluation = attack.evaluate(options, run, case.victim, case.x, y, source=model)
    attack.write(options, run, case.victim, evaluation)
    curve = attack.budget_curve(options, run, case.victim, case.x, y)
    metrics = run.finish()["metrics"]
    table = read_table(run.folder)
    assert metrics["clean_accuracy"] == 0.9 and metrics["clean_accuracy_n"] == 40
    by_attack = {row["attack"]: row for row in table if (row["metric"], row["split"]) == ("accuracy", "test")}
    assert set(by_attack) == {"fgsm", "pgd20", "noise", "transfer", "all"}
    value = {name: row["value"] for name, row in by_attack.items()}
    assert value["all"] > 0 and value["pgd20"] <= value["fgsm"] <= value["noise"] <= 0.9
    assert value["all"] == np.logical_and.reduce([outcome.robust for outcome in evaluation.outcomes]).mean()
    # The most frequent class, always; and nothing is compared again where all met the same images.
    constant = next(row for row in table if row["metric"] == "constant_accuracy")
    assert (constant["value"], constant["n"]) == (np.bincount(y).max() / 40, 40)
    assert not [row for row in table if row["metric"] == "accuracy_common"]
    assert {name: metrics[f"accuracy_{name}"] for name in ("fgsm", "pgd20", "all")} == {
        name: value[name] for name in ("fgsm", "pgd20", "all")
    }
    assert "accuracy_noise" not in metrics and "accuracy_transfer" not in metrics
    success = {row["attack"]: row for row in table if row["metric"] == "success"}
    for name, row in success.items():
        assert row["n"] == 36 and row["value"] == pytest.approx(1 - value[name] / 0.9)
    # What an attack costs: one gradient, at most twenty, none.
    cost = {row["attack"]: row["value"] for row in table if row["metric"] == "gradients"}
    assert cost["fgsm"] == 1 and 1 < cost["pgd20"] <= 40 and cost["noise"] == 0 and "all" not in cost
    # Twenty images, the four that were wrong before among them; without a bound none is robust.
    assert curve[0.0].value == 0.8 and curve[2 / 255].value <= 0.8 and curve[1.0].value == 0
    drawn = [row for row in table if row["split"] == "curve"]
    # The figure and the table are of the same samples, with the same intervals.
    for row in drawn:
        assert tuple(curve[row["eps"]]) == (row["value"], 20, row["low"], row["high"]) and row["n"] == 20


def test_dear_attacks_meet_fewer_images_and_are_compared_on_those(case, run):
    options = attack.Options(eps=(1 / 255,), n_slow=10, batch_size=40, attack=("fgsm", "adaptive", "noise"))
    evaluation = attack.evaluate(options, run, case.victim, case.x, case.y)
    attack.write(options, run, case.victim, evaluation)
    run.finish()
    found = {(row["metric"], row["attack"]): row["n"] for row in read_table(run.folder)}
    assert [found["accuracy", name] for name in ("fgsm", "adaptive", "noise", "all")] == [40, 10, 40, 10]
    assert [found["accuracy_common", name] for name in ("fgsm", "adaptive", "noise")] == [10, 10, 10]


def test_outcomes_are_all_that_was_attacked(case, run, few_draws):
    table = analyse.Table(run, "toy", EPS)
    shift = np.random.default_rng(2).choice([-0.2, 0.2], size=case.x.shape)
    changed = np.clip(case.x + shift, 0, 1).astype(np.float32)
    after = case.compute_attention(changed)
    success = after.logits.argmax(axis=1) != case.y
    assert 4 < success.sum() < 36
    noise = analysis.attention_iou(case.seen.area, case.compute_attention(case.attacked("noise", EPS)).area)
    overlap = analyse._outcomes(case, table, "pgd20", after, success, headline=True)
    assert np.array_equal(overlap, analysis.attention_iou(case.seen.area, after.area))
    randomised = case._replace(victim=case.victim._replace(model=analyse._shuffled(case.victim.model, 0)))
    randomised = randomised._replace(seen=randomised.compute_attention(case.x))
    analyse._controls(randomised, table, "pgd20", changed, overlap, success, noise)
    curves = analyse._iterated(case, table)
    metrics = run.finish()["metrics"]
    wanted = {f"{metric}_{side}" for metric in ("iou_clean_adv", "iou_object") for side in ("success", "failure")}
    assert wanted | {"trust_clean", "trust_adv"} <= set(metrics)
    assert metrics["iou_clean_adv_success"] == pytest.approx(overlap[success].mean())
    assert metrics["trust_clean"] == pytest.approx(analysis.confidence(case.seen.logits).mean())
    found = read_table(run.folder)
    for metric in ("iou_clean_adv", "trust_clean", "trust_adv", "entropy_clean", "entropy_adv"):
        own = [row for row in found if row["attack"] == "pgd20" and not (row["less"] or row["weights"])]
        sides = {row["split"]: row["n"] for row in own if row["metric"] == metric}
        assert (sides["success"], sides["failure"]) == (success.sum(), (~success).sum())
        assert sides.get("all", 40) == 40
    known = case.masks.any(axis=(1, 2))
    sides = {row["split"]: row["n"] for row in found if row["metric"] == "iou_object" and not row["less"]}
    assert (sides["success"], sides["failure"]) == ((success & known).sum(), (~success & known).sum())
    assert {"shuffled"} <= {r["weights"] for r in found}
    assert {row["metric"] for row in found if row["given"] == "other causes"} == {
        f"log_odds_{cause}" for cause in ("margin", "iou_object", "object_area")
    }
    (paired,) = [row for row in found if row["less"] == "noise"]
    assert paired["value"] == pytest.approx((overlap - noise).mean())
    assert set(curves) == {"eps", "eps a step"}
    for budget, points in curves.items():
        assert tuple(points) == analyse.STEPS
        rates = {
            int(row["steps"]): row["value"] for row in found if (row["metric"], row["budget"]) == ("success", budget)
        }
        assert rates == {steps: rate.value for steps, (rate, _) in points.items()}
    # One step is the same in both; with a budget that grows, more succeed than within the ball.
    assert curves["eps"][1] == curves["eps a step"][1]
    assert curves["eps a step"][8][0] >= curves["eps"][8][0]


def test_shuffled_weights_are_as_large_and_in_another_order(model):
    other = analyse._shuffled(model, 0)
    for new, old in zip(other.weights, model.weights, strict=True):
        new, old = np.asarray(new), np.asarray(old)
        assert np.array_equal(np.sort(new, axis=None), np.sort(old, axis=None))
        assert np.array_equal(new, old) == (old.ndim == 1)


def test_a_strip_shows_both_maps_on_one_scale():
    rng = np.random.default_rng(0)
    clean, attacked = 0.5 + 0.25 * rng.random((2, 8, 8, 3))
    low, high = rng.random((8, 8)), 1 + rng.random((8, 8))
    heats = explain._heats(low, high)
    assert min(heat.min() for heat in heats) == 0 and max(heat.max() for heat in heats) == 1
    assert np.allclose((heats[1] - heats[0]) * (high.max() - low.min()), high - low)
    area = rng.random((8, 8)) < 0.3
    before, after = explain._strips((clean, heats[0], area), (attacked, heats[1], area), 0.5)
    assert len(before) == len(after) == 4 and all(np.shape(drawing)[:2] == (8, 8) for drawing in before + after)
    assert np.array_equal(before[0], clean) and np.array_equal(after[0], attacked)
    assert np.allclose(before[3], 0.5 + (attacked - clean))


def test_a_image_of_one_channel_is_explained_by_lime():
    image = np.full((16, 16, 1), 0.5, np.float32)
    image[4:8, 4:8] = 1

    def answer(batch):
        assert batch.shape[1:] == (16, 16, 1)
        bright = np.clip(2 * batch[:, 4:8, 4:8, 0] - 1, 0, 1).mean(axis=(1, 2))
        return np.stack([bright, 1 - bright], axis=1)

    area = lime_map(answer, image, 0, segments=16, features=1, samples=100, seed=3)
    assert area.shape == (16, 16) and area[5, 5] and not area[10:].any()


def test_masks_from_boxes_are_those_of_the_tested_images(tmp_path, run):
    from PIL import Image

    rng = np.random.default_rng(0)
    box = "<annotation><size><width>20</width><height>20</height></size><object><bndbox>"
    box += "<xmin>2</xmin><ymin>4</ymin><xmax>12</xmax><ymax>{below}</ymax></bndbox></object></annotation>"
    (tmp_path / "boxes").mkdir()
    for name, below in (("cat", 8), ("dog", 16)):
        for part, count in (("train", 2), ("test", 3)):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(256, size=(20, 20, 3), dtype=np.uint8))
                image.save(tmp_path / "pets" / part / name / f"{name}{number}.png")
                (tmp_path / "boxes" / f"{name}{number}.xml").write_text(box.format(below=below))
    given = {"dataset": str(tmp_path / "pets"), "boxes": tmp_path / "boxes"}
    test_set = load_test_set(analyse.analyse.options(**given), run)
    assert test_set.x.shape == (6, 20, 20, 3) and test_set.masks.shape == (6, 20, 20)
    assert test_set.masks.sum(axis=(1, 2)).tolist() == [10 * (4 if label == 0 else 12) for label in test_set.y]
    with pytest.raises(UserError, match="--boxes: are for an image folder; scenes is not one"):
        load_test_set(analyse.analyse.options(boxes=tmp_path / "boxes", n_test=2), run)


def test_accuracy_under_pgd_is_watched_at_the_radius_of_the_training(model, case):
    found = {
        eps: train._under_pgd(train.Options(eps=eps), model, np.rint(255 * case.x).astype(np.uint8), case.y)
        for eps in (1 / 255, 1.0)
    }
    assert found[1.0] == 0 and found[1.0] <= found[1 / 255] <= 1


def test_equal_clean_accuracy_is_read_off_straight_lines():
    known = [(0.8, 0.0), (0.6, 0.4), (0.7, 0.3)]
    assert run_all.at_equal_accuracy(known, 0.65) == pytest.approx(0.35)
    assert run_all.at_equal_accuracy(known, 0.8) == 0
    assert run_all.at_equal_accuracy(known, 0.81) is None
    assert run_all.at_equal_accuracy(known, 0.59) is None
    assert run_all.at_equal_accuracy([], 0.7) is None


def test_other_ways_are_compared_with_plain_and_pgd_training_alone():
    def table(clean, left):
        shared = {"metric": "accuracy", "n": 10, "low": 0.0, "high": 1.0}
        curve = {**shared, "split": "curve", "attack": "pgd20", "eps": 0.0, "value": clean}
        return [curve, {**shared, "split": "test", "attack": "all", "eps": 0.1, "value": left}]

    def variant(name, **settings):
        return run_all.Variant((name,), {"method": name, **settings})

    tables = {
        variant("standard"): table(0.9, 0.0),
        variant("pgd"): table(0.5, 0.4),
        variant("trades"): table(0.7, 0.3),
        variant("fast"): table(0.4, 0.1),
    }
    # Two ends of a line say nothing about what lies between.
    assert not list(run_all._compared(tables))
    tables[variant("pgd", eps=0.01)] = table(0.8, 0.2)
    # The one that answers worse than all that are known has nothing to be compared with.
    (found,) = run_all._compared(tables)
    assert (found["metric"], found["eps"], found["n"]) == ("pgd_at_equal_clean", 0.1, None)
    assert found["value"] == pytest.approx(0.2 + 0.2 / 3)


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (train.train, {"alpha": 0.0}, "--alpha: must be above 0"),
        (train.train, {"beta": 0.0, "gamma": 0.0}, "one of them must be above 0"),
        (train.train, {"method": "pgd", "eps": 0.0}, "--eps: must be above 0"),
        (attack.attack, {"attack": ("fgsm", "magic")}, "attack: expected one of fgsm"),
        (attack.attack, {"curve": (0.5 / 255, 0.1)}, "0.5/255 is less than one grey level"),
        (analyse.analyse, {"eps": 0.001}, "0.255/255 is less than one grey level"),
        (analyse.analyse, {"attack": ("magic",)}, "attack: expected one of fgsm"),
        (explain.explain, {"attack": "magic"}, "attack: expected one of fgsm"),
        (run_all.run_all, {"methods": ("standard", "magic")}, "methods: expected one of standard"),
        (run_all.run_all, {"methods": ("aad",), "pgd_eps": (0.01,)}, "--pgd-eps: belongs to pgd"),
        (attack.attack, {"model": "nowhere.keras"}, "nowhere.keras: no such file"),
    ],
)
def test_what_does_not_do_is_refused_in_one_line(tmp_path, monkeypatch, script, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as refused:
        script(script.options(**options))
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "runs").rglob("results.json"))


def test_a_layer_that_is_none_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--layer: nowhere: no such layer"):
        train.train(train.Options(layer="nowhere", n_train=64, n_test=20))
    assert not list(tmp_path.rglob("metrics.csv"))


def untrained(options, run):
    """Of train.py all but the training."""
    from common.models import build

    run.data("scenes", "d" * 64)
    checkpoints.save_model(build("small_cnn", (32, 32, 3), 10, seed=3), run.folder / "model.keras")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder with a run of train.py, untrained, under the name of a configuration there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.train, "body", untrained)
    (tmp_path / "tiny.yaml").write_text("attack: {n_test: 20}\nanalyse: {n_test: 20}\n")
    train.train(train.train.options(name="tiny"))
    return tmp_path / "runs/attention_defense/train/tiny"


def test_a_run_of_the_same_folder_and_another_seed_is_no_model(trained):
    """Another seed parts a folder otherwise: the model may have been trained on the images that it is tested on."""
    words = ["--config", "tiny.yaml", "--seed", "1", "--name", "again", "--model", str(trained)]
    with pytest.raises(UserError, match="was run with seed 0, this run has 1"):
        attack.attack(attack.attack.parse(words))


def test_a_layer_that_is_none_is_refused(trained):
    words = ["--config", "tiny.yaml", "--layer", "nowhere", "--name", "other", "--model", str(trained)]
    with pytest.raises(UserError, match="--layer: nowhere: no such layer"):
        analyse.analyse(analyse.analyse.parse(words))


def test_what_is_attacked_knows_how_it_was_trained(trained, run):
    """Name, layer and weights of the model's own run; `train.py` is asked where none is named."""
    options = attack.attack.parse(["--config", "tiny.yaml"])
    test_set = load_test_set(options, run)
    found = load_victim(options, test_set, run)
    assert (found.name, found.layer, found.training) == ("aad", None, Training())
    train.train(
        train.train.options(name="own", method="step_ll", layer="block2_relu", alpha=2.0, gamma=0.0, sharpness=5.0)
    )
    options = attack.attack.options(model=Path("runs/attention_defense/train/own"), n_test=20)
    found = load_victim(options, test_set, run, maps=False)
    weights = Training().weights._replace(classification=2.0, preservation=0.0)
    assert (found.name, found.layer) == ("step_ll", "block2_relu")
    assert found.training == Training("block2_relu", weights, 5.0)


def test_a_model_of_other_classes_or_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for units, activation, message in (
        (7, None, "has 7 classes, the images have 10; a model that knows all of them"),
        (12, None, "has 12 classes, the images have 10; give the model's list"),
        (10, "sigmoid", "sigmoid over 10 units"),
    ):
        images = keras.Input((32, 32, 3))
        features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images))
        path = tmp_path / f"{units}{activation}.keras"
        keras.Model(images, keras.layers.Dense(units, activation=activation)(features)).save(path)
        with pytest.raises(UserError, match=message):
            attack.attack(attack.Options(model=path, n_test=20, name=path.stem))
    with pytest.raises(UserError, match="inception_v3: has 1000 classes, the images have 10"):
        attack.attack(attack.Options(model="inception_v3", n_test=20, name="large"))


def test_a_network_without_maps_serves_where_nobody_looks(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    images = keras.Input((32, 32, 3))
    path = tmp_path / "flat.keras"
    keras.Model(images, keras.layers.Dense(10)(keras.layers.Flatten()(images))).save(path)
    options = attack.attack.options(model=path, n_test=20)
    test_set = load_test_set(options, run)
    assert load_victim(options, test_set, run, maps=False).name == "flat"
    with pytest.raises(UserError, match="no layer with a map"):
        load_victim(options, test_set, run)
    settings = {"model": path, "n_test": 20, "n_slow": 10, "curve": (1.0,)}
    with pytest.raises(UserError, match="no layer with a map"):
        attack.attack(attack.Options(attack=("fgsm", "attention"), name="maps", **settings))
