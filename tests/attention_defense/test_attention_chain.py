"""The scripts from end to end, from scenes to tables and figures."""

import csv
import json

import numpy as np
import pytest

from attention_defense import analyse, attack, explain, run_all, train
from attention_defense.evaluation import analysis
from common.errors import UserError

pytestmark = pytest.mark.slow

CONFIG = """
train: {n_train: 400, n_test: 60, epochs: 2, n_validation: 20, batch_size: 32}
attack: {n_test: 30, attack: "fgsm,step_ll,pgd20,attention,noise", curve: "2/255,1.0", n_slow: 20}
analyse: {n_test: 120}
explain: {n_test: 3, lime_samples: 40, n_drawn: 2}
"""
# What run_all.py makes of more ways of training is in `test_attention_run_all`, on stubs.
JOINED = """
train: {n_train: 100, n_test: 20, epochs: 1, n_validation: 10, batch_size: 32}
attack: {n_test: 20, attack: "fgsm,attention", curve: 2/255, n_slow: 10}
run_all: {methods: "standard,aad"}
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
        # Intervals are not looked at here, and thousands of draws take longer than the attacks.
        patch.setattr(analysis, "_REFITS", 20)
        (folder / "tiny.yaml").write_text(CONFIG)
        results = {}
        for script in (attack.attack, analyse.analyse, explain.explain):
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
                counts = [int(r["n"]) for r in sides if r["split"] in ("success", "failure") and not r["less"]]
                assert len(counts) == 2 and sum(counts) == int(row["n"])
    assert {"eps", "eps a step"} <= {r["budget"] for r in found} and "noise" in {r["less"] for r in found}


def test_figures_are_drawn(chain):
    folder, _ = chain
    for place in ("train/tiny/training", "attack/tiny/curve", "analyse/tiny/overlap", "explain/tiny/strips"):
        assert (folder / f"{place}.png").stat().st_size > 5000


def test_run_all_joins_its_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "joined.yaml").write_text(JOINED)
    results = run_all.run_all(run_all.run_all.parse(["--config", "joined.yaml"]))
    folder = tmp_path / "runs/attention_defense"
    joined = rows(folder / "run_all/joined")
    assert {row["model"] for row in joined} == {"standard", "aad"}
    for method in ("standard", "aad"):
        own = json.loads((folder / f"attack/joined/{method}/results.json").read_text())["metrics"]
        assert results["metrics"][f"{method}_accuracy_fgsm"] == own["accuracy_fgsm"]
        clean = [row for row in joined if row["model"] == method and row["metric"] == "clean_accuracy"]
        assert {row["split"] for row in clean} == {"test", "attacked"}
    assert {row["model"] for row in joined if row["attack"] == "transfer"} == {"aad"}


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
                image = rng.integers(level - 50, level + 50, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / "pets" / part / name / f"{name}{number}.png")
                (tmp_path / "boxes").mkdir(exist_ok=True)
                (tmp_path / "boxes" / f"{name}{number}.xml").write_text(box)
    trained = train.Options(dataset="pets", epochs=4, n_validation=4, batch_size=8, method="standard")
    train.train(trained)
    options = analyse.Options(dataset="pets", boxes=tmp_path / "boxes", attack=("pgd20",), eps=1.0)
    results = analyse.analyse(options)
    assert "iou_object_success" in results["metrics"]


def test_images_of_one_channel_are_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("test", 6)):
        labels = np.arange(count, dtype=np.uint8) % 2
        images = rng.integers(100, size=(count, 16, 16), dtype=np.uint8) + 100 * labels[:, None, None]
        arrays |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels}
    np.savez("digits.npz", **arrays)
    train.train(train.Options(dataset="digits.npz", epochs=2, n_validation=4, batch_size=8, augment="none"))
    results = explain.explain(explain.Options(dataset="digits.npz", n_test=3, n_drawn=2, lime_samples=40, segments=8))
    assert "strips" in results["artifacts"]


def test_a_network_without_maps_is_attacked_at_its_answers(tmp_path, monkeypatch):
    import keras

    monkeypatch.chdir(tmp_path)
    images = keras.Input((32, 32, 3))
    path = tmp_path / "flat.keras"
    keras.Model(images, keras.layers.Dense(10)(keras.layers.Flatten()(images))).save(path)
    settings = {"model": path, "n_test": 20, "n_slow": 10, "curve": (1.0,)}
    found = attack.attack(attack.Options(attack=("fgsm", "noise"), name="answers", **settings))
    assert "accuracy_fgsm" in found["metrics"]
    with pytest.raises(UserError, match="no layer with a map"):
        attack.attack(attack.Options(attack=("fgsm", "attention"), name="maps", **settings))
