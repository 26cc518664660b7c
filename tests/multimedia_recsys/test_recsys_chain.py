"""The seven scripts, from drawn products to tables and figures."""

import csv
import functools
import json

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from multimedia_recsys import (
    classify_extract,
    classify_extract_attack,
    evaluate_visual_images,
    results_analyzer,
    run_all,
    train_cnn,
)
from multimedia_recsys.data import catalog
from multimedia_recsys.data.categories import Pair
from multimedia_recsys.data.visual_features import read_visual
from multimedia_recsys.evaluation import exposure, ranking
from multimedia_recsys.models import recommendations
from multimedia_recsys.results_analyzer import read_attack
from multimedia_recsys.train_cnn import load_catalog

pytestmark = pytest.mark.slow

SHOP = {"n_items": 260, "n_users": 150, "seed": 0}
FILES = [f"{item}.png" for item in range(SHOP["n_items"])]
CONFIG = """
train_cnn: {n_items: 260, n_users: 150, n_train: 400, n_test: 100, epochs: 4, augment: none, steps: 1}
classify_extract: {n_items: 260, n_users: 150}
rec_generator: {n_items: 260, n_users: 150, epochs: 2, top_k: 50}
results_analyzer: {n_items: 260, n_users: 150, top_k: 20}
classify_extract_attack: {n_items: 260, n_users: 150, steps: 3}
evaluate_visual_images: {n_items: 260, n_users: 150}
run_all: {n_items: 260, n_users: 150, top_k: 20}
"""


def rows(folder):
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which evaluate_visual_images.py and then run_all.py ran with nothing there."""
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Every script draws the same products again.
        patch.setattr(catalog, "products", functools.cache(catalog.products))
        (folder / "tiny.yaml").write_text(CONFIG)
        options = evaluate_visual_images.Options(**SHOP, config="tiny.yaml")
        evaluate_visual_images.evaluate_visual_images(options)
        whole = run_all.run_all(
            run_all.Options(**SHOP, config="tiny.yaml", top_k=20, pairs=("near",), attack=("pgd",), retrain="none")
        )
        yield folder, whole


def classes(visual):
    """Origin and target of an attack: the class that most images are taken for, and another one."""
    most = np.argsort(np.bincount(visual.label, minlength=12))[::-1]
    return {"origin_class": str(most[0]), "target_class": str(most[1])}


def place(folder, script):
    return folder / "runs/multimedia_recsys" / script / "tiny"


def test_run_all_writes_what_the_issue_names(chain):
    """What it makes of more networks and attacks, and of retraining, is in `test_recsys_run_all`, on stubs."""
    folder, results = chain
    keys = {"hr_at_10", "ndcg_at_10", "auc", "attack_success", "psnr_mean", "ssim_mean", "psm_mean", "mean_rank_shift"}
    keys |= {f"chr_{name}" for name in ("origin_clean", "origin_attacked", "origin_noise", "target_clean")}
    assert keys <= set(results["metrics"])
    table = rows(place(folder, "run_all"))
    models = {(row["model"], row["threat"]) for row in table}
    assert {("vbpr", "frozen"), ("amr", "frozen"), ("bprmf", ""), ("popularity", "")} <= models
    assert {"pgd_8", "noise_8", "swap", "insa_8_vbpr", "insa_8_amr"} <= {row["attack"] for row in table}
    assert ("standard", "near") in {(row["cnn"], row["pair"]) for row in table}


def test_a_network_is_trained_on_pgd_examples(tmp_path):
    options = {**SHOP, "n_train": 64, "n_test": 20, "epochs": 1, "method": "pgd", "steps": 1}
    results = train_cnn.train_cnn(train_cnn.Options(**options, out=tmp_path / "run"))
    assert 0 <= results["metrics"]["test_accuracy"] <= 1 and (tmp_path / "run/model.keras").is_file()


def test_the_figures_of_run_all_are_those_of_its_parts(chain):
    folder, results = chain
    metrics = results["metrics"]
    quality = json.loads(
        (folder / "runs/multimedia_recsys/evaluate_visual_images/tiny/standard/near_pgd_8/results.json").read_text()
    )
    assert metrics["psnr_mean"] == quality["metrics"]["psnr_mean"]
    analysis = rows(place(folder, "results_analyzer"))
    shares = {row["split"]: float(row["value"]) for row in analysis if row["metric"] == "chr"}
    assert min(shares.values()) <= metrics["chr_origin_clean"] <= max(shares.values())
    assert metrics["chr_origin_clean"] in shares.values()


def test_unchanged_images_leave_the_lists_as_they_are(chain, monkeypatch):
    """F7: the push of an attack that changes nothing is nothing, exactly."""
    folder, _ = chain
    monkeypatch.chdir(folder)
    catalog = load_catalog(classify_extract.Options(**SHOP))
    visual = read_visual(place(folder, "classify_extract") / "original_images", FILES)
    model, scale = recommendations.load(
        place(folder, "rec_generator") / "vbpr.npz", catalog.feedback, visual.features.shape[1]
    )
    factors = model.factors(visual.features / np.float32(scale))
    lists = recommendations.read_lists(place(folder, "rec_generator") / "top_vbpr.npz", catalog.feedback)
    # What was stored is what the stored weights answer, so clean and attacked lists have one origin.
    assert np.array_equal(ranking.top_k(factors, catalog.feedback, 50), lists)
    options = {**classes(visual), "eps": 0.0, "attack": "pgd"}
    results = classify_extract_attack.classify_extract_attack(
        classify_extract_attack.Options(**SHOP, config="tiny.yaml", out=folder / "idle", **options)
    )
    attack = read_attack(folder / "idle", FILES)
    assert np.array_equal(attack.features, visual.features)
    assert attack.pair == Pair(results["metrics"]["origin"], results["metrics"]["target"])
    before = exposure.exposure_of(factors, catalog.feedback, visual.label, attack.items, attack.pair, 20)
    after = exposure.exposure_of(
        model.factors(attack.features / np.float32(scale)),
        catalog.feedback,
        visual.label,
        attack.items,
        attack.pair,
        20,
    )
    measured = exposure.measures(before, after)
    unchanged = {"value": 0.0, "n": len(attack.items), "low": 0.0, "high": 0.0}
    assert measured["chr_lift"] == {"value": 0.0}
    assert (measured["item_lift"], measured["rank_shift"]) == (unchanged, unchanged)


def test_attacked_images_are_files_and_were_judged_from_there(chain):
    folder, _ = chain
    found = place(folder, "classify_extract_attack")
    metrics = json.loads((found / "results.json").read_text())
    attack = read_attack(found, FILES)
    images = attack.folder / "images"
    assert sorted(int(path.stem) for path in images.iterdir()) == attack.items.tolist()
    catalog = load_catalog(classify_extract.Options(**SHOP))
    for item in attack.items[:5]:
        stored = np.asarray(Image.open(images / f"{item}.png")).astype(int)
        assert 0 < np.abs(stored - catalog.images.read(np.array([item]))[0]).max() <= 8
    with open(attack.folder / "classes.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 260
    assert list(table[0]) == [
        *("ImageID", "ClassStr", "ClassNum", "Prob"),
        *("ClassStrStart", "ClassNumStart", "ProbStart"),
    ]
    taken = [row for row in table if int(row["ClassNumStart"]) == attack.pair.origin]
    assert len(taken) == len(attack.items)
    success = np.mean([int(row["ClassNum"]) == attack.pair.target for row in taken])
    assert success == pytest.approx(metrics["metrics"]["attack_success"])
    features = np.load(attack.folder / "features.npy", allow_pickle=False)
    assert features.shape[0] == 260


def test_image_measures_against_numpy(chain, monkeypatch):
    folder, _ = chain
    monkeypatch.chdir(folder)
    attack = read_attack(place(folder, "classify_extract_attack"), FILES)
    catalog = load_catalog(classify_extract.Options(**SHOP))
    clean = read_visual(place(folder, "classify_extract") / "original_images", FILES)
    before = catalog.images.read(attack.items).astype(np.float64) / 255
    after = np.stack(
        [np.asarray(Image.open(attack.folder / f"images/{item}.png"), np.float64) / 255 for item in attack.items]
    )
    mse = ((before - after) ** 2).mean(axis=(1, 2, 3))
    metrics = json.loads((place(folder, "evaluate_visual_images") / "results.json").read_text())["metrics"]
    assert metrics["mse_mean"] == pytest.approx(mse.mean(), rel=1e-5)
    assert metrics["psnr_mean"] == pytest.approx((10 * np.log10(1 / mse)).mean(), rel=1e-4)
    shift = attack.features[attack.items].astype(np.float64) - clean.features[attack.items]
    assert metrics["psm_mean"] == pytest.approx((shift**2).mean(axis=1).mean(), rel=1e-5)
    assert metrics["linf_mean"] <= 8 / 255 + 1e-9
    assert 0.3 < metrics["ssim_mean"] < 1


def test_an_interrupted_attack_goes_on_and_ends_alike(chain, monkeypatch):
    folder, _ = chain
    monkeypatch.chdir(folder)
    visual = read_visual(place(folder, "classify_extract") / "original_images", FILES)
    options = {**SHOP, "config": "tiny.yaml", **classes(visual)}
    whole = classify_extract_attack.classify_extract_attack(
        classify_extract_attack.Options(**options, name="tiny", out=folder / "whole")
    )
    from multimedia_recsys.data import attack_folders

    monkeypatch.setattr(attack_folders, "_CHUNK", 32)
    calls, genuine = [], attack_folders.write_png

    def cut_short(path, image):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(path)
        genuine(path, image)

    monkeypatch.setattr(attack_folders, "write_png", cut_short)
    with pytest.raises(KeyboardInterrupt):
        classify_extract_attack.classify_extract_attack(
            classify_extract_attack.Options(**options, name="tiny", out=folder / "cut")
        )
    calls.clear()
    monkeypatch.setattr(attack_folders, "write_png", lambda path, image: (calls.append(path), genuine(path, image)))
    again = classify_extract_attack.classify_extract_attack(
        classify_extract_attack.Options(**options, name="tiny", out=folder / "cut", resume=True)
    )
    attack = read_attack(folder / "cut", FILES)
    assert len(calls) == len(attack.items) - 3
    # Batches of other sizes may round a gradient to another sign here and there, no more.
    success = [results["metrics"]["attack_success"] for results in (again, whole)]
    assert success[0] == pytest.approx(success[1], abs=0.02)
    apart = np.abs(attack.features - read_attack(folder / "whole", FILES).features)
    assert np.median(apart[attack.items]) < 1e-3
    assert np.delete(apart, attack.items, axis=0).max() == 0


def test_an_analysis_measures_an_attack_frozen_and_retrained(chain, monkeypatch):
    folder, _ = chain
    monkeypatch.chdir(folder)
    attacked = place(folder, "classify_extract_attack")
    results = results_analyzer.results_analyzer(
        results_analyzer.Options(
            **SHOP, config="tiny.yaml", out=folder / "measured", attacked=attacked, retrain=True, top_k=20
        )
    )
    assert {"chr_lift_frozen", "chr_lift_retrained", "rank_shift_frozen", "item_lift_retrained"} <= set(
        results["metrics"]
    )
    with pytest.raises(UserError, match="bprmf does not look at images"):
        results_analyzer.results_analyzer(
            results_analyzer.Options(
                **SHOP, config="tiny.yaml", out=folder / "blind", attacked=attacked, recommender="bprmf", top_k=20
            )
        )
