"""Shops from files, changed images and their effects, what scripts make of what others left, and refusals."""

import csv
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.runs.record import read_results, read_table
from common.training import checkpoints
from multimedia_recsys import (
    classify_extract,
    classify_extract_attack,
    evaluate_visual_images,
    rec_generator,
    results_analyzer,
    run_all,
    train_cnn,
)
from multimedia_recsys.data import attack_folders
from multimedia_recsys.data.attack_folders import image_paths
from multimedia_recsys.data.categories import Pair
from multimedia_recsys.data.interactions import interactions
from multimedia_recsys.data.visual_features import read_visual
from multimedia_recsys.evaluation import exposure, ranking
from multimedia_recsys.models import recommendations
from multimedia_recsys.models.recommenders import Factors
from multimedia_recsys.results_analyzer import read_attack
from multimedia_recsys.train_cnn import load_catalog
from tests.helpers.recsys_toys import CLASSES, FILES, SHOP, catalog, drawn_recommender, stub

PLACE = "runs/multimedia_recsys"
CLASS_PAIR = {"origin_class": "0", "target_class": "1"}


def options_of_toys(script, **settings):
    return script.options(**{**SHOP, "name": "tiny", **settings})


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """An empty folder for scripts whose forerunners are stubs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def toy_scores():
    """Feedback, a recommender's factors, and the class of each of 240 items."""
    rng = np.random.default_rng(1)
    feedback = interactions(rng.integers(40, size=200), rng.integers(240, size=200), np.full(40, -1), items=240)
    factors = Factors(*(rng.normal(size=shape).astype(np.float32) for shape in ((40, 3), (240, 3), (240,))))
    return feedback, factors, (np.arange(240) % CLASSES).astype(np.int32)


def test_f7_what_changes_nothing_has_no_effect():
    """F7: the push of an attack that changes nothing is nothing, exactly."""
    feedback, factors, label = toy_scores()
    items = np.flatnonzero(label == 2)
    before, after = (exposure.exposure_of(factors, feedback, label, items, Pair(2, 0), 20) for _ in range(2))
    measured = exposure.measures(before, after)
    unchanged = {"value": 0.0, "n": len(items), "low": 0.0, "high": 0.0}
    assert measured["chr_lift"] == {"value": 0.0}
    assert (measured["item_lift"], measured["rank_shift"]) == (unchanged, unchanged)


def test_a_raised_score_shows_in_lift_and_rank():
    feedback, factors, label = toy_scores()
    items = np.flatnonzero(label == label[0])
    raised = factors._replace(offset=factors.offset + 100.0 * (label == label[0]))
    pair = Pair(int(label[0]), int(label[label != label[0]][0]))
    before, after = (exposure.exposure_of(f, feedback, label, items, pair, 20) for f in (factors, raised))
    measured = exposure.measures(before, after)
    assert measured["chr_lift"]["value"] > 0
    assert measured["rank_shift"]["value"] > 0
    lift = measured["item_lift"]
    assert 0 < lift["low"] <= lift["value"] <= lift["high"] and lift["n"] == len(items)
    # All the places that the class can take, it takes.
    assert after.chr_origin == pytest.approx(min(len(items) / 20, 1), abs=0.1)


def test_images_that_are_there_already_are_not_changed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(attack_folders, "_CHUNK", 2)
    items, asked = np.arange(7, 14), []

    def change(images, given):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(given.tolist())
        return 255 - images

    with pytest.raises(KeyboardInterrupt):
        attack_folders.write_images(tmp_path, catalog(), items, change)
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == [7, 8, 9, 10]
    asked.clear()
    monkeypatch.setattr(attack_folders, "_CHUNK", 64)
    attack_folders.write_images(tmp_path, catalog(), items, change)
    assert asked == [[11, 12, 13]]
    assert np.array_equal(attack_folders.read_images(tmp_path, catalog(), items), 255 - catalog().images.read(items))


def toy_network():
    """Untrained, and balanced: its answers to the toys' products spread over four of the twelve classes."""
    images = keras.Input((48, 48, 3))
    drawn = [{"kernel_initializer": keras.initializers.GlorotUniform(seed)} for seed in (4, 5)]
    x = keras.layers.Conv2D(6, 8, strides=8, activation="relu", **drawn[0])(images)
    made = keras.Model(images, keras.layers.Dense(12, **drawn[1])(keras.layers.GlobalAveragePooling2D()(x)))
    logits = made(catalog().images.read(np.arange(SHOP["n_items"])) / np.float32(255), training=False).numpy()
    made.layers[-1].bias.assign(np.where(np.arange(12) < CLASSES, -logits.mean(axis=0), -100))
    return made


def test_attacked_images_are_files_and_were_judged_from_there(toys, monkeypatch):
    """With the control that needs no gradient; the attacks themselves are in `test_image_attacks`."""
    stub(monkeypatch, classify_extract.classify_extract, classify_extract_attack.classify_extract_attack)
    network = toy_network()
    checkpoints.save_model(network, toys / "net.keras")
    classify_extract.classify_extract(options_of_toys(classify_extract.classify_extract, model=toys / "net.keras"))
    clean = read_visual(toys / PLACE / "classify_extract/tiny/original_images", FILES)
    logits = network(catalog().images.read(np.arange(SHOP["n_items"])) / np.float32(255), training=False).numpy()
    assert np.array_equal(clean.label, logits.argmax(axis=1)) and len(np.unique(clean.label)) > 1
    most = np.argsort(np.bincount(clean.label))[::-1]
    pair = {"origin_class": str(most[0]), "target_class": str(most[1])}
    script = classify_extract_attack.classify_extract_attack
    metrics = script(options_of_toys(script, attack="noise", model=toys / "net.keras", **pair))["metrics"]
    attack = read_attack(toys / PLACE / "classify_extract_attack/tiny", FILES)
    assert attack.pair == Pair(int(most[0]), int(most[1]))
    assert np.array_equal(attack.items, np.flatnonzero(clean.label == most[0]))
    images = attack.folder / "images"
    assert sorted(int(path.stem) for path in images.iterdir()) == attack.items.tolist()
    stored = np.stack([np.asarray(Image.open(images / f"{item}.png")) for item in attack.items])
    changed = np.abs(stored.astype(int) - catalog().images.read(attack.items)).max(axis=(1, 2, 3))
    assert changed.min() > 0 and changed.max() <= 8
    judged = network(stored / np.float32(255), training=False).numpy().argmax(axis=1)
    assert np.array_equal(attack.label[attack.items], judged)
    others = np.delete(np.arange(SHOP["n_items"]), attack.items)
    assert np.array_equal(attack.features[others], clean.features[others])
    assert metrics["attack_success"] == pytest.approx((judged == attack.pair.target).mean())
    assert metrics["attack_success_n"] == len(attack.items)
    with open(attack.folder / "classes.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [
        *("ImageID", "ClassStr", "ClassNum", "Prob"),
        *("ClassStrStart", "ClassNumStart", "ProbStart"),
    ]
    assert [int(row["ClassNumStart"]) for row in table] == clean.label.tolist()


def test_image_measures_against_numpy(toys, monkeypatch):
    stub(monkeypatch, evaluate_visual_images.evaluate_visual_images)
    given = classify_extract_attack.classify_extract_attack
    given(options_of_toys(given, attack="pgd", **CLASS_PAIR))
    script = evaluate_visual_images.evaluate_visual_images
    metrics = script(options_of_toys(script))["metrics"]
    attack = read_attack(toys / PLACE / "classify_extract_attack/tiny", FILES)
    clean = read_visual(toys / PLACE / "classify_extract/tiny/original_images", FILES)
    before = catalog().images.read(attack.items).astype(np.float64) / 255
    after = np.stack(
        [np.asarray(Image.open(attack.folder / f"images/{item}.png"), np.float64) / 255 for item in attack.items]
    )
    mse = ((before - after) ** 2).mean(axis=(1, 2, 3))
    assert metrics["mse_mean"] == pytest.approx(mse.mean(), rel=1e-5)
    assert metrics["psnr_mean"] == pytest.approx((10 * np.log10(1 / mse)).mean(), rel=1e-4)
    shift = attack.features[attack.items].astype(np.float64) - clean.features[attack.items]
    assert metrics["psm_mean"] == pytest.approx((shift**2).mean(axis=1).mean(), rel=1e-5)
    assert 0 < metrics["linf_mean"] <= 8 / 255 + 1e-9
    assert 0.3 < metrics["ssim_mean"] < 1
    table = read_table(toys / PLACE / "evaluate_visual_images/tiny")
    taken = attack.label[attack.items] == attack.pair.target
    found = {(row["split"], row["metric"]): row["value"] for row in table}
    assert found["successful", "mse"] == pytest.approx(mse[taken].mean(), rel=1e-5)
    assert (found["all", "pictures"], found["successful", "pictures"]) == (len(taken), taken.sum())


def test_an_analysis_measures_an_attack_frozen_and_retrained(toys, monkeypatch):
    stub(monkeypatch)
    given, script = classify_extract_attack.classify_extract_attack, results_analyzer.results_analyzer
    given(options_of_toys(given, attack="pgd", **CLASS_PAIR))
    attacked = toys / PLACE / "classify_extract_attack/tiny"
    settings = {"attacked": attacked, "top_k": 20}
    results = script(options_of_toys(script, **settings, out=toys / "measured", retrain=True))
    assert {"chr_lift_frozen", "chr_lift_retrained", "rank_shift_frozen", "item_lift_retrained"} <= set(
        results["metrics"]
    )
    visual = read_visual(toys / PLACE / "classify_extract/tiny/original_images", FILES)
    attack = read_attack(attacked, FILES)
    for threat, seed in (("frozen", 3), ("retrained", 8)):
        models = drawn_recommender("vbpr", 3), drawn_recommender("vbpr", seed)
        before, after = (
            exposure.exposure_of(
                model.factors(features / np.float32(visual.scale)),
                catalog().feedback,
                visual.label,
                attack.items,
                attack.pair,
                20,
            )
            for model, features in zip(models, (visual.features, attack.features), strict=True)
        )
        for metric, columns in exposure.measures(before, after).items():
            assert results["metrics"][f"{metric}_{threat}"] == pytest.approx(columns["value"], abs=1e-6)
    with pytest.raises(UserError, match="bprmf does not look at images"):
        script(options_of_toys(script, **settings, out=toys / "blind", recommender="bprmf"))


def test_lists_are_those_of_the_stored_weights(toys, monkeypatch):
    """Clean and attacked lists have one origin."""
    stub(monkeypatch, rec_generator.rec_generator)
    script = rec_generator.rec_generator
    results = script(options_of_toys(script, models=("vbpr", "popularity"), top_k=50))
    run = toys / PLACE / "rec_generator/tiny"
    visual = read_visual(toys / PLACE / "classify_extract/tiny/original_images", FILES)
    model, scale = recommendations.load(run / "vbpr.npz", catalog().feedback, visual.features.shape[1])
    assert scale == pytest.approx(visual.scale)
    factors = model.factors(visual.features / np.float32(scale))
    lists = recommendations.read_lists(run / "top_vbpr.npz", catalog().feedback)
    assert np.array_equal(ranking.top_k(factors, catalog().feedback, 50), lists)
    quality = ranking.quality(ranking.ranks(factors, catalog().feedback))
    for name in ("hr_at_10", "ndcg_at_10", "auc"):
        assert results["metrics"][name] == pytest.approx(quality[name].mean())
    assert {row["model"] for row in read_table(run)} == {"vbpr", "popularity"}
    assert set(read_results(run)["artifacts"]) == {"vbpr", "top_vbpr", "top_popularity"}


@pytest.fixture
def layout(tmp_path):
    """A shop in the original layout, with images of differing sizes."""
    images = tmp_path / "amazon/original_images/images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for item in range(12):
        size = (20 + item, 24)
        Image.fromarray(rng.integers(256, size=(*size, 3), dtype=np.uint8)).save(images / f"{item}.jpg")
    lines = [f"{user}\t{item}\n" for user in range(8) for item in rng.permutation(12)[:4]]
    (tmp_path / "amazon/pos.txt").write_text("".join(lines))
    return tmp_path / "amazon"


def options_of(layout, **more):
    return classify_extract.Options(dataset=str(layout), image_size=32, **more)


def test_the_original_layout_is_read(layout):
    catalog = load_catalog(options_of(layout))
    assert (len(catalog.images), catalog.feedback.users, catalog.feedback.items) == (12, 8, 12)
    assert catalog.images.read(np.array([3, 0])).shape == (2, 32, 32, 3)
    with pytest.raises(UserError, match="has no categories to train on"):
        train_cnn.train_cnn(train_cnn.Options(dataset=str(layout), out=layout.parent / "run"))


def test_images_that_do_not_do_are_named(layout):
    images = layout / "original_images/images"
    (images / "5.jpg").rename(layout / "kept.jpg")
    with pytest.raises(UserError, match="no image of item 5, but of 11"):
        load_catalog(options_of(layout))
    shutil.copy(layout / "kept.jpg", images / "5.png.jpg")
    with pytest.raises(UserError, match=r"5.png.jpg: its name is no item"):
        load_catalog(options_of(layout))
    (images / "5.png.jpg").unlink()
    (images / "5.jpg").write_bytes((layout / "kept.jpg").read_bytes()[:200])
    catalog = load_catalog(options_of(layout))
    with pytest.raises(UserError, match=r"5.jpg"):
        catalog.images.read(np.array([5]))
    shutil.copy(layout / "kept.jpg", images / "5.png")
    with pytest.raises(UserError, match="item 5 has a second image"):
        load_catalog(options_of(layout))


def test_an_item_without_a_image_names_its_line(layout):
    (layout / "pos.txt").write_text("0\t1\n0\t12\n")
    with pytest.raises(UserError, match=r"pos.txt:2: item 12; there are images of 0 to 11"):
        load_catalog(options_of(layout))


def test_names_from_data_cannot_leave_the_folder(tmp_path):
    honest = catalog()
    for name in ("../../out.jpg", "/etc/out.jpg"):
        evil = honest.__class__(honest.name, honest.images, honest.feedback, (name,), "", None, ())
        path = image_paths(tmp_path, evil, np.array([0]))[0]
        assert path.resolve().parent == tmp_path.resolve()


def test_an_image_folder_with_a_csv_is_a_shop(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("hat", "sock"):
        (tmp_path / "shop" / kind).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8))
            image.save(tmp_path / "shop" / kind / f"{kind}{number}.png")
    lines = [f"u{user},{kind}{number}" for user in range(4) for kind in ("hat", "sock") for number in range(3)]
    (tmp_path / "who.csv").write_text("user,item\n" + "\n".join(lines) + "\n")
    catalog = load_catalog(
        classify_extract.Options(dataset=str(tmp_path / "shop"), interactions=tmp_path / "who.csv", image_size=16)
    )
    assert catalog.category_names == ("hat", "sock")
    assert catalog.category.tolist() == [0] * 4 + [1] * 4
    assert catalog.feedback.users == 4
    assert (catalog.feedback.test >= 0).all()


@pytest.mark.parametrize(
    ("script", "wrong", "message"),
    [
        (rec_generator.rec_generator, {"models": ("vbpr", "svd")}, "models: expected one of .*svd"),
        (run_all.run_all, {"attack": ("jsma",)}, "attack: expected one of"),
        (
            classify_extract_attack.classify_extract_attack,
            {"origin_class": "sock"},
            "give both or neither",
        ),
        (classify_extract.classify_extract, {"dataset": "nowhere"}, "no such folder"),
        (classify_extract.classify_extract, {"image_size": 32}, "--image-size: is for folders"),
        (results_analyzer.results_analyzer, {"top_k": 400}, "make longer ones or lower --top-k"),
    ],
)
def test_wrong_options_end_in_one_line(toys, monkeypatch, script, wrong, message):
    network = toys / "net.keras"
    if script is classify_extract_attack.classify_extract_attack:
        checkpoints.save_model(toy_network(), network)
        wrong = {"model": network, **wrong}
    stub(monkeypatch, script)
    with pytest.raises(UserError, match=message) as refused:
        script(script.parser.options_class(**{**SHOP, "name": "tiny", "out": toys / "run"} | wrong))
    assert "\n" not in str(refused.value)
    assert not (toys / "run/results.json").exists()
