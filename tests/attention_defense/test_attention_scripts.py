"""The five scripts, from scenes to tables and figures, and what they refuse."""

import csv
import json
from typing import get_args

import numpy as np
import pytest

from attention_defense import analyse, attack, explain, run_all, train
from common.errors import UserError

CONFIG = """
train: {n_train: 400, n_test: 60, epochs: 2, n_validation: 20, batch_size: 32}
attack: {n_test: 30, attack: "fgsm,step_ll,pgd20,attention,noise", curve: "2/255,1.0", n_strongest: 20}
analyse: {n_test: 120}
explain: {n_test: 3, lime_samples: 40, n_drawn: 2}
run_all: {methods: "standard,aad", few_methods: "aad_two_step,pgd", n_few: 100, pgd_eps: 4/255}
"""


def rows(folder):
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which attack.py and then the others ran with nothing there, and their results."""
    folder = tmp_path_factory.mktemp("attention")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "tiny.yaml").write_text(CONFIG)
        results = {}
        for script in (attack.attack, analyse.analyse, explain.explain, run_all.run_all):
            results[script.name] = script(script.parse(["--config", "tiny.yaml"]))
        results["train"] = json.loads((folder / "runs/attention_defense/train/tiny/results.json").read_text())
        yield folder / "runs/attention_defense", results


def test_headlines_are_there(chain):
    _, results = chain
    assert {"clean_accuracy", "gradient_norm_rectification", "gradient_norm_preservation"} <= set(
        results["train"]["metrics"]
    )
    assert min(results["train"]["metrics"][f"gradient_norm_{t}"] for t in ("rectification", "preservation")) > 0
    assert {"clean_accuracy", *(f"accuracy_{name}" for name in attack.HEADLINE)} <= set(results["attack"]["metrics"])
    wanted = {f"{metric}_{side}" for metric in ("iou_clean_adv", "iou_object") for side in ("success", "failure")}
    assert wanted | {"trust_clean", "trust_adv"} <= set(results["analyse"]["metrics"])


def test_accuracies_go_together(chain):
    folder, results = chain
    by_attack = {
        row["attack"]: float(row["value"])
        for row in rows(folder / "attack/tiny")
        if (row["metric"], row["split"]) == ("accuracy", "test")
    }
    clean = results["attack"]["metrics"]["clean_accuracy"]
    # Nobody's attack takes less than noise does, and the network is one that can be fooled.
    assert by_attack["pgd20"] < by_attack["fgsm"] <= by_attack["noise"] <= clean
    attacks = ["fgsm", "step_ll", "pgd20", "attention"]
    assert all(by_attack[name] <= clean for name in attacks)
    assert results["attack"]["metrics"]["accuracy_all"] <= min(by_attack[name] for name in attacks)
    unbound = [row for row in rows(folder / "attack/tiny") if row["split"] == "curve" and float(row["eps"]) == 1]
    assert float(unbound[0]["value"]) == 0


def test_outcomes_are_all_that_was_attacked(chain):
    folder, _ = chain
    found = rows(folder / "analyse/tiny")
    for row in found:
        if row["split"] == "all" and row["metric"] in ("trust_adv", "entropy_clean"):
            for metric in ("iou_clean_adv", row["metric"]):
                sides = [r for r in found if r["attack"] == row["attack"] and r["metric"] == metric]
                counts = [int(r["n"]) for r in sides if r["split"] in ("success", "failure")]
                assert len(counts) == 2 and sum(counts) == int(row["n"])
    assert {"shuffled weights", "attack less noise", "O3, within eps", "O3, eps a step"} <= {r["split"] for r in found}


def test_run_all_joins_its_parts(chain):
    folder, results = chain
    joined = rows(folder / "run_all/tiny")
    few = {f"{name}, 100 pictures" for name in ("aad_two_step", "pgd", "pgd at 4/255")}
    assert {row["model"] for row in joined} == {"standard", "aad", *few}
    for method in ("standard", "aad"):
        own = json.loads((folder / f"attack/tiny/{method}/results.json").read_text())["metrics"]
        assert results["run_all"]["metrics"][f"{method}_accuracy_pgd20"] == own["accuracy_pgd20"]
        clean = [row for row in joined if row["model"] == method and row["metric"] == "clean_accuracy"]
        assert {row["split"] for row in clean} == {"test", "attacked"}
    transferred = {row["model"] for row in joined if row["attack"] == "transfer"}
    assert transferred == {"aad", *few}


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

    def way(name, **settings):
        return run_all.Way(name, (name,), {"method": name, **settings})

    tables = {
        way("standard"): table(0.9, 0.0),
        way("pgd"): table(0.5, 0.4),
        way("trades"): table(0.7, 0.3),
        way("fast"): table(0.4, 0.1),
    }
    # Two ends of a line say nothing about what lies between.
    assert not list(run_all._compared(tables))
    tables[way("pgd", eps=0.01)] = table(0.8, 0.2)
    # The one that answers worse than all that are known has nothing to be compared with.
    (found,) = run_all._compared(tables)
    assert (found["metric"], found["eps"], found["n"]) == ("pgd_at_equal_clean", 0.1, None)
    assert found["value"] == pytest.approx(0.2 + 0.2 / 3)


def test_figures_are_drawn(chain):
    folder, _ = chain
    for place in ("train/tiny/training", "attack/tiny/curve", "analyse/tiny/overlap", "explain/tiny/strips"):
        assert (folder / f"{place}.png").stat().st_size > 5000


@pytest.mark.parametrize("method", get_args(train.MethodName))
def test_every_method_trains(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    options = train.Options(method=method, n_train=96, n_test=20, epochs=1, n_validation=8, batch_size=32)
    assert "clean_accuracy" in train.train(options)["metrics"]


def test_folders_and_masks_from_boxes(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    box = "<annotation><size><width>20</width><height>20</height></size><object><bndbox>"
    box += "<xmin>2</xmin><ymin>2</ymin><xmax>12</xmax><ymax>12</ymax></bndbox></object></annotation>"
    for name, level in (("cat", 60), ("dog", 180)):
        for part, count in (("train", 20), ("test", 8)):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(level - 50, level + 50, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(picture).save(tmp_path / "pets" / part / name / f"{name}{number}.png")
                (tmp_path / "boxes").mkdir(exist_ok=True)
                (tmp_path / "boxes" / f"{name}{number}.xml").write_text(box)
    trained = train.Options(dataset="pets", epochs=4, n_validation=4, batch_size=8, method="standard")
    train.train(trained)
    options = analyse.Options(dataset="pets", boxes=tmp_path / "boxes", attack=("pgd20",), eps=1.0)
    results = analyse.analyse(options)
    assert "iou_object_success" in results["metrics"]


def test_pictures_of_one_channel_are_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("test", 6)):
        labels = np.arange(count, dtype=np.uint8) % 2
        pictures = rng.integers(100, size=(count, 16, 16), dtype=np.uint8) + 100 * labels[:, None, None]
        arrays |= {f"x_{part}": pictures.astype(np.uint8), f"y_{part}": labels}
    np.savez("digits.npz", **arrays)
    train.train(train.Options(dataset="digits.npz", epochs=2, n_validation=4, batch_size=8, augment="none"))
    results = explain.explain(explain.Options(dataset="digits.npz", n_test=3, n_drawn=2, lime_samples=40, segments=8))
    assert "strips" in results["artifacts"]


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


def test_a_run_of_the_same_folder_and_another_seed_is_no_model(chain, monkeypatch):
    """Another seed parts a folder otherwise: the model may have been trained on the pictures that it is tested on."""
    folder, _ = chain
    monkeypatch.chdir(folder.parent.parent)
    words = ["--config", "tiny.yaml", "--seed", "1", "--name", "again", "--model", str(folder / "train/tiny")]
    with pytest.raises(UserError, match="was run with seed 0, this run has 1"):
        attack.attack(attack.attack.parse(words))


def test_a_model_of_other_classes_or_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    import keras

    monkeypatch.chdir(tmp_path)
    for units, activation, message in (
        (7, None, "tells 7 classes apart, the pictures have 10; a model that knows all of them"),
        (12, None, "tells 12 classes apart, the pictures have 10; give the model's list"),
        (10, "sigmoid", "sigmoid over 10 units"),
    ):
        images = keras.Input((32, 32, 3))
        features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images))
        path = tmp_path / f"{units}{activation}.keras"
        keras.Model(images, keras.layers.Dense(units, activation=activation)(features)).save(path)
        with pytest.raises(UserError, match=message):
            attack.attack(attack.Options(model=path, n_test=20, name=path.stem))
    with pytest.raises(UserError, match="inception_v3: tells 1000 classes apart, the pictures have 10"):
        attack.attack(attack.Options(model="inception_v3", n_test=20, name="large"))


def test_a_network_without_maps_is_attacked_at_its_answers(tmp_path, monkeypatch):
    import keras

    monkeypatch.chdir(tmp_path)
    images = keras.Input((32, 32, 3))
    path = tmp_path / "flat.keras"
    keras.Model(images, keras.layers.Dense(10)(keras.layers.Flatten()(images))).save(path)
    settings = {"model": path, "n_test": 20, "n_strongest": 10, "curve": (1.0,)}
    found = attack.attack(attack.Options(attack=("fgsm", "noise"), name="answers", **settings))
    assert "accuracy_fgsm" in found["metrics"]
    with pytest.raises(UserError, match="no layer of its own with a map"):
        attack.attack(attack.Options(attack=("fgsm", "attention"), name="maps", **settings))


def test_a_layer_that_is_none_is_refused(chain, monkeypatch):
    folder, _ = chain
    monkeypatch.chdir(folder.parent.parent)
    with pytest.raises(UserError, match="--layer: nowhere: no such layer"):
        words = [
            "--config",
            "tiny.yaml",
            "--layer",
            "nowhere",
            "--name",
            "other",
            "--model",
            str(folder / "train/tiny"),
        ]
        analyse.analyse(analyse.analyse.parse(words))
