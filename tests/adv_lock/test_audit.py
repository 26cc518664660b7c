"""audit.py: who sees which images, controls by the same recipe, and what is kept on the way."""

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from adv_lock.attacks.locking import KEY, LOCKED
from adv_lock.attacks.targeted import targeted_attack
from adv_lock.audit import audit
from adv_lock.data.locked import read_locked
from adv_lock.lock import lock
from adv_lock.training import trainers
from adv_lock.training.trainers import PHOTOS, PIPELINES, QUICK, SEED, TRAINERS
from common.datasets import scaled
from common.datasets.images import read_image
from common.errors import UserError
from common.evaluation import predictions
from common.models import build
from common.runs.record import read_table
from common.training import fit

FITTED = {"epochs": 2, "batch_size": 16}


@pytest.fixture(scope="module")
def source(lock_scenes, tmp_path_factory):
    """The folder of a lock on the scenes."""
    folder = tmp_path_factory.mktemp("lock")
    lock_scenes("basic", folder, folder / "store")
    assert (folder / LOCKED).is_dir() and (folder / KEY).is_file()
    return folder


@functools.cache
def network(shape, classes):
    """One for all trainings: its answers are taken before the next one, and it is compiled once."""
    return build("small_cnn", shape, classes)


@pytest.fixture
def trainings(monkeypatch):
    """Trainings without their work: what each was given, in their order."""
    found = []

    def trained(recipe, run, x, y, classes, evaluate, *, title, seed, **settings):
        found.append(SimpleNamespace(title=title, recipe=recipe, x=x, y=y, seed=seed, **settings))
        model = network(x.shape[1:], classes)
        model.layers[-1].kernel.assign(np.random.default_rng(len(found)).normal(size=model.layers[-1].kernel.shape))
        return model, []

    monkeypatch.setattr(fit, "fit", trained)
    # The network of ImageNet takes as long to build as all else here.
    monkeypatch.setattr(trainers, "imagenet_features", lambda images: images.mean(axis=(1, 2)))
    return found


def test_no_trainer_sees_a_clean_image_that_is_not_its_own(workplace, source, trainings, monkeypatch):
    """Whoever has none learns from locked images alone, changed or not; controls have the same recipe and seed."""
    few = {name: PIPELINES[name] for name in ("nothing", "jpeg30, grey")}
    monkeypatch.setattr(trainers, "PIPELINES", few)
    monkeypatch.setattr(trainers, "RUNGS", ((1, 1), (2, 1)))
    audit(audit.options(lock_data=source, panel="full", n_clean=20, **FITTED))
    data = read_locked(source, 32)
    originals, y = data.original_train(), data.y_train
    by_title = {training.title: training for training in trainings}
    assert len(by_title) == len(trainings)
    for name, trainer in TRAINERS.items():
        if trainer.uses != "own":
            continue
        learnt = by_title[f"{name.replace('_', ' ')} locked"]
        change = (lambda x: x) if trainer.change is None else trainer.change(data.locked_train, y)
        own = (learnt.x == originals).all(axis=(1, 2, 3)) if trainer.clean else np.zeros(len(y), bool)
        assert own.sum() == round(trainer.clean * len(y))
        np.testing.assert_array_equal(learnt.x[~own], change(data.locked_train)[~own])
        np.testing.assert_array_equal(learnt.y, y)
        assert learnt.seed == SEED and learnt.recipe.epochs == FITTED["epochs"]
        if trainer.clean:
            without = by_title[f"{name.replace('_', ' ')} without"]
            assert sorted(map(bytes, without.x)) == sorted(map(bytes, originals[own]))
            # As many steps.
            assert without.recipe.epochs == FITTED["epochs"] * 2
        else:
            control = by_title[f"{name} clean".replace("_", " ")]
            change = (lambda x: x) if trainer.change is None else trainer.change(originals, y)
            np.testing.assert_array_equal(control.x, change(originals))
            assert control.recipe == learnt.recipe and control.seed == learnt.seed
            assert (control.method is None) == (learnt.method is None) == (trainer.method is None)
            assert control.further is learnt.further is trainer.augment
    searched = [by_title[title] for title in by_title if title.startswith("search ")]
    assert [training.recipe.epochs for training in searched] == [1, 1, 2]
    for training, change in zip(searched, few.values(), strict=False):
        np.testing.assert_array_equal(training.x, change(data.locked_train))
    few = by_title["few clean"]
    assert len(few.x) == 20 and {bytes(image) for image in few.x} <= {bytes(image) for image in originals}
    assert few.recipe.epochs == FITTED["epochs"] * 3


def test_the_figures_are_those_of_the_answers(workplace, source, trainings, monkeypatch):
    """Of locked and clean, in the order of the panel; class_map uses what plain has learnt."""
    y = read_locked(source, 32).y_test
    right = iter((0.4, 0.9, 0.4, 0.9, 0.8, 0.85, 0.5, 0.6))
    monkeypatch.setattr(
        predictions,
        "predict",
        lambda model, x, **how: np.where(np.arange(len(y)) < next(right) * len(y), y, (y + 1) % 10),
    )
    results = audit(audit.options(lock_data=source, **FITTED))
    assert [training.title for training in trainings] == [
        f"{name} {source}" for name in ("plain", "jpeg10", "grey") for source in ("locked", "clean")
    ]
    (folder,) = (workplace / "runs/adv_lock/audit").iterdir()
    rows = read_table(folder)
    value = {(row["trainer"], row["metric"]): row["value"] for row in rows}
    best = max(value[name, "accuracy_clean"] for name in QUICK)
    metrics = results["metrics"]
    assert metrics["best_clean_accuracy"] == pytest.approx(best)
    assert (best, value["jpeg10", "accuracy_locked"]) == (0.9, 0.8)
    learnt = {}
    for name in QUICK:
        locked, without = value[name, "accuracy_locked"], value[name, "accuracy_without"]
        if (name, "learnt") in value:
            learnt[name] = value[name, "learnt"]
            assert learnt[name] == pytest.approx((locked - without) / (best - without))
        assert value[name, "minutes"] >= 0
    assert metrics["learnt_by_the_best"] == pytest.approx(max(learnt.values()))
    assert value["class_map", "accuracy_clean"] == value["plain", "accuracy_clean"]


def test_a_stopped_audit_goes_on_with_the_next_trainer(workplace, source, trainings, monkeypatch):
    options = audit.options(lock_data=source, **FITTED)
    whole = audit(audit.options(lock_data=source, **FITTED, name="whole"))
    done, so_far = len(trainings), fit.fit
    trainings.clear()

    def stopping(*arguments, **settings):
        if len(trainings) == 3:
            raise KeyboardInterrupt
        return so_far(*arguments, **settings)

    monkeypatch.setattr(fit, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        audit(options)
    monkeypatch.setattr(fit, "fit", so_far)
    resumed = audit(audit.options(lock_data=source, **FITTED, resume=True))
    assert len(trainings) == done and len({training.title for training in trainings}) == done
    assert {k: v for k, v in resumed["metrics"].items() if "minutes" not in k} == whole["metrics"]


def test_where_nothing_is_learnt_from_originals_there_is_nothing_to_share_out(
    workplace, source, trainings, monkeypatch
):
    """As after a step or two: the figures are there, and the shares are not."""
    monkeypatch.setattr(predictions, "predict", lambda model, x, **how: np.full(len(x), -1, np.int32))
    results = audit(audit.options(lock_data=source, **FITTED))
    assert results["metrics"]["best_clean_accuracy"] == 0 and "learnt_by_plain" not in results["metrics"]
    (folder,) = (workplace / "runs/adv_lock/audit").iterdir()
    assert "learnt" not in {row["metric"] for row in read_table(folder)}


@pytest.fixture
def photographs(workplace, base_model_of_two):
    """The run of a lock on two classes of six photographs each."""
    for name, level in (("dark", 60), ("light", 180)):
        (workplace / "photos" / name).mkdir(parents=True)
        for i in range(6):
            noise = np.random.default_rng([level, i]).integers(-50, 50, (72, 80, 3))
            Image.fromarray((level + noise).astype(np.uint8)).save(workplace / "photos" / name / f"{i}.png")
    lock(lock.options(dataset="photos", model=base_model_of_two, steps=1))
    (run,) = (workplace / "runs/adv_lock/lock").iterdir()
    return run


def test_each_trainer_on_photographs_sees_its_own_size_of_what_was_uploaded(photographs, trainings, monkeypatch):
    looks = []
    monkeypatch.setattr(trainers, "imagenet_features", lambda x: looks.append(x) or x.mean(axis=(1, 2)))
    results = audit(audit.options(lock_data=photographs, panel="photos", **FITTED))
    by_title = {training.title: training for training in trainings}
    (first, *_), labels = trainings, read_locked(photographs, 32).y_train
    for name, trainer in PHOTOS.items():
        plain = read_locked(photographs, trainer.size, trainer.upload)
        change = (lambda x: x) if trainer.change is None else trainer.change(plain.locked_train, labels)
        images = {"locked": change(plain.locked_train), "clean": change(plain.original_train())}
        assert images["locked"].shape[1:] == (trainer.size, trainer.size, 3)
        for source, expected in images.items():
            if trainer.uses == "imagenet":
                assert any(np.array_equal(seen, expected) for seen in looks)
            else:
                training = by_title[f"{name} {source}".replace("_", " ")]
                np.testing.assert_array_equal(training.x, expected)
                np.testing.assert_array_equal(training.y, labels)
                assert training.recipe.arch == ("efficientnet_lite0" if name == "tuned" else first.recipe.arch)
    assert {"accuracy_of_scratch_32", "best_clean_accuracy"} <= set(results["metrics"])


def test_a_lock_says_how_it_is_audited(photographs):
    assert f"audit.py --lock-data {photographs.relative_to(Path.cwd())} --panel photos" in (
        photographs / "log.txt"
    ).read_text("utf-8")


def test_an_upload_is_of_the_full_size(photographs):
    seen = read_locked(photographs, 32, trainers.halved).locked_train
    files = sorted(path for path in (photographs / LOCKED).rglob("*.png"))
    expected = [scaled(trainers.halved(read_image(file).rgb), 32) for file in files]
    assert trainers.halved(read_image(files[0]).rgb).shape == (36, 40, 3)
    assert all(any(np.array_equal(image, other) for other in expected) for image in seen)


def test_photographs_are_not_arrays(workplace, source):
    for settings in ({"lock_data": source}, {}):
        with pytest.raises(UserError, match="--panel: photos is for a folder of images"):
            audit(audit.options(panel="photos", **settings, **FITTED))
    with pytest.raises(UserError, match="--image-size: each trainer of --panel photos has its own"):
        (workplace / "photos" / "a").mkdir(parents=True)
        audit(audit.options(panel="photos", dataset="photos", image_size=32, **FITTED))


def test_rows_say_what_a_lock_was_crafted_to_hold_through(lock_scenes, classifier, source, tmp_path):
    attack = targeted_attack(classifier, eps=1.0, alpha=0.4, steps=1, views=("grey",))
    lock_scenes("basic", tmp_path, tmp_path / "store", attack=attack)
    assert read_locked(tmp_path, 32).method == "basic through grey"
    assert read_locked(source, 32).method == "basic"
    assert b"grey" not in (tmp_path / LOCKED / "manifest.json").read_bytes()


def test_some_trainers_of_a_panel(workplace, source, trainings):
    """The first goes before them, for it is what they are measured by."""
    results = audit(audit.options(lock_data=source, trainers=("grey", "class_map"), **FITTED))
    assert [training.title for training in trainings] == ["plain locked", "plain clean", "grey locked", "grey clean"]
    (folder,) = (workplace / "runs/adv_lock/audit").iterdir()
    assert {row["trainer"] for row in read_table(folder)} == {"plain", "class_map", "grey"}
    assert results["metrics"]["best_clean_accuracy_n"] == len(read_locked(source, 32).y_test)
    with pytest.raises(UserError, match="--trainers: projection: not in --panel quick; choose plain, class_map,"):
        audit(audit.options(lock_data=source, trainers=("projection",), name="other", **FITTED))
