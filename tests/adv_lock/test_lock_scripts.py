"""lock.py, unlock.py and train.py on arrays, from end to end: what they report, sharing, resuming, the chain."""

import numpy as np
import pytest

from adv_lock.attacks import locking, mixing
from adv_lock.data import locked
from adv_lock.lock import lock
from adv_lock.train import train
from adv_lock.train_base import train_base
from adv_lock.unlock import unlock
from common import files
from common.errors import UserError
from common.evaluation import predictions
from common.training import checkpoints

pytestmark = pytest.mark.slow

SMALL = {"n_train": 60, "n_test": 20}
LOCK = {**SMALL, "steps": 3, "eps": 1.0, "attack_lr": 0.4}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(locking, "_BLOCK", 25)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base_model):
    """A folder in which each method has locked once, the one that needs all class maps first, with what it reported and
    the attacks in the store after it."""
    folder = tmp_path_factory.mktemp("locks")
    results, counts = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(locking, "_BLOCK", 25)
        for method in ("mixandcat", "basic", "mixup", "horiz"):
            options = {"model": base_model, "lock_method": method, "attack_store": folder / "store", "name": method}
            results[method] = lock(lock.options(**LOCK, **options))
            counts.append(len(list((folder / "store").rglob("*.npz"))))
    return folder / "runs/adv_lock/lock", results, counts


def stored(run, name):
    return files.read_npz(run / "locked" / "locked.npz")[name]


def test_methods_share_attacks_in_the_store_that_is_named(runs):
    """Five blocks of 25 (60 and 20 images) towards four maps."""
    assert runs[2] == [4 * 4] * 4


@pytest.mark.parametrize("method", ["basic", "mixup", "horiz", "mixandcat"])
def test_reported_success_and_budget_are_those_of_the_stored_images(runs, scenes, classifier, method):
    """F4, B13: budget and success are recomputed from the file as a stranger reads it."""
    folder, all_results, _ = runs
    run, metrics = folder / method, all_results[method]["metrics"]
    key = locked.read_key(run / "key.npz")
    for split, x, y in (("train", scenes.x_train, scenes.y_train), ("test", scenes.x_test, scenes.y_test)):
        images = stored(run, f"x_{split}")
        assert mixing.distances(x, images).max() <= 1.0
        assert (images != x).any(axis=(1, 2, 3)).all()
        classes = y if split == "train" else predictions.predict(classifier, x)
        hits = (predictions.predict(classifier, images) == key.class_maps[:, classes]).any(axis=0)
        assert metrics[f"success_{split}"] == pytest.approx(hits.mean())
        assert (stored(run, f"y_{split}") == y).all()
    assert metrics["l2_max"] <= 1.0
    assert metrics["psnr_min"] >= 10 * np.log10(3072) - 1e-6
    assert {"psnr_mean", "ssim_mean", "images_per_second", "base_accuracy", "key_bytes_ratio"} <= set(metrics)
    assert sorted(path.name for path in (run / "locked").rglob("*")) == ["locked.npz", "manifest.json"]


def test_unlock_restores_every_pixel(workplace, runs, scenes):
    results = unlock(unlock.options(lock_data=runs[0] / "basic", name="back"))
    restored = files.read_npz(workplace / "runs/adv_lock/unlock/back/original/original.npz")
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert (restored[name] == getattr(scenes, name)).all()
    assert results["metrics"]["restored"] == 1.0
    assert results["metrics"]["key_bytes_ratio"] > 0


def test_interrupted_locking_resumes(workplace, runs, base_model, monkeypatch):
    options = {**LOCK, "model": base_model, "name": "broken", "attack_store": workplace / "b"}
    real, calls = locking._lock_block, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(locking, "_lock_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock(lock.options(**options))
    run = workplace / "runs/adv_lock/lock/broken"
    assert not (run / "locked/locked.npz").exists() and not (run / "key.npz").exists()
    assert len(list((workplace / "b").rglob("*.npz"))) == 2
    monkeypatch.setattr(locking, "_lock_block", real)
    with pytest.raises(UserError, match="resume"):
        lock(lock.options(**options))
    lock(lock.options(**options, resume=True))
    for name in ("locked/locked.npz", "key.npz"):
        assert files.sha256(run / name) == files.sha256(runs[0] / "basic" / name)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    lock(lock.options(**options))
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_refused_input_leaves_the_finished_run_and_its_key(workplace, base_model):
    """Nothing lost: not by --force with a bad option, and a first try with one does not claim the folder."""
    with pytest.raises(UserError, match="eps: must be above 0"):
        lock(lock.options(**{**LOCK, "eps": 0}, model=base_model))
    lock(lock.options(**LOCK, model=base_model))
    run = workplace / "runs/adv_lock/lock/demo"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="eps: must be above 0"):
        lock(lock.options(**{**LOCK, "eps": 0}, model=base_model, force=True))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    again = lock(lock.options(**{**LOCK, "eps": 0.8}, model=base_model, force=True))
    assert again["metrics"]["l2_max"] <= 0.8 and not (run / ".before").exists()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which train_base.py, lock.py and train.py ran by their defaults, each on what the one before it made,
    and what train.py reported."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_base(train_base.options(**FITTING))
        lock(lock.options(**LOCK))
        return folder, train(train.options(**FITTING))


FITTING = {"epochs": 1, "batch_size": 32, **SMALL}


def test_the_chain_makes_what_is_missing(chain, scenes, monkeypatch):
    folder, results = chain
    monkeypatch.chdir(folder)
    metrics = results["metrics"]
    for name in ("original_accuracy", "original_accuracy_peak", "locked_accuracy", "reference_accuracy"):
        assert 0 <= metrics[name] <= 1
    assert 0 <= metrics["inverse_map_rate"] <= 1
    run = folder / "runs/adv_lock/train/demo"
    curve = (run / "metrics.csv").read_text().splitlines()
    assert {"epoch", "original_accuracy", "locked_accuracy"} <= set(curve[0].split(",")) and len(curve) == 2
    assert (run / "crossing.png").is_file() and list((run / "tensorboard").iterdir())
    model = checkpoints.load_model(run / "model.keras")
    assert predictions.accuracy(model, scenes.x_test, scenes.y_test) == pytest.approx(metrics["original_accuracy"])
    locked_test = stored(folder / "runs/adv_lock/lock/demo", "x_test")
    assert predictions.accuracy(model, locked_test, scenes.y_test) == pytest.approx(metrics["locked_accuracy"])
    with pytest.raises(UserError, match="seed"):
        train(train.options(**FITTING, seed=1, out=folder / "elsewhere"))


def test_a_reference_of_another_recipe_is_refused_and_one_of_this_recipe_taken(chain, monkeypatch):
    folder, _ = chain
    monkeypatch.chdir(folder)
    fitting = {"lock_data": folder / "runs/adv_lock/lock/demo", "batch_size": 32, "epochs": 1, "name": "compared"}
    # The run of the originals that the chain has made inside the run on locked images.
    reference = folder / "runs/adv_lock/train/demo/reference"
    with pytest.raises(UserError, match="has epochs 1, this run 2"):
        train(train.options(**{**fitting, "epochs": 2}, reference=reference))
    results = train(train.options(**fitting, reference=reference))
    assert not (folder / "runs/adv_lock/train/compared/reference").exists()
    assert results["metrics"]["reference_accuracy"] >= 0


def test_a_named_base_model_may_have_learnt_elsewhere(workplace, chain):
    """From a run or its file, of another seed than this lock's."""
    base = chain[0] / "runs/adv_lock/train_base/demo"
    for given in (base, base / "model.keras"):
        lock(lock.options(**LOCK, seed=5, model=given, name=given.name))
        assert (workplace / "runs/adv_lock/lock" / given.name / "key.npz").is_file()
