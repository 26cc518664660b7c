"""lock.py, unlock.py and train.py on arrays: budget, sharing, restoring, resuming, the chain."""

import itertools
import json

import numpy as np
import pytest

from adv_lock import locked_data, locking, mixing
from adv_lock.lock import lock
from adv_lock.targeted import targeted_attack
from adv_lock.train import train
from adv_lock.train_base import train_base
from adv_lock.unlock import unlock
from common import checkpoints, datasets, evaluation, files
from common.errors import UserError

SMALL = {"n_train": 60, "n_test": 20}
LOCK = {**SMALL, "attack_steps": 3, "eps": 1.0, "attack_lr": 0.4}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(locking, "_BLOCK", 25)


def stored(run, name):
    return files.read_npz(run / "locked" / "locked.npz")[name]


@pytest.mark.parametrize("method", ["basic", "mixup", "horiz", "mixandcat"])
def test_stored_pictures_keep_the_budget_and_the_reported_success(workplace, base_model, method):
    """F4, B13: budget and success are recomputed from the file as a stranger reads it."""
    results = lock(lock.options(**LOCK, model=base_model, lock_method=method))
    run = workplace / "runs/adv_lock/lock/demo"
    data = datasets.load("scenes", **SMALL)
    model = checkpoints.load_model(base_model)
    key = locked_data.read_key(run / "key.npz")
    for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        pictures = stored(run, f"x_{split}")
        assert pictures.dtype == np.uint8
        assert mixing.distances(x, pictures).max() <= 1.0
        assert (pictures != x).any(axis=(1, 2, 3)).all()
        classes = y if split == "train" else evaluation.predict(model, x)
        hits = (evaluation.predict(model, pictures) == key.class_maps[:, classes]).any(axis=0)
        assert results["metrics"][f"success_{split}"] == pytest.approx(hits.mean())
        assert (stored(run, f"y_{split}") == y).all()
    assert results["metrics"]["l2_max"] <= 1.0
    assert results["metrics"]["psnr_min"] >= 10 * np.log10(3072) - 1e-6
    assert {"psnr_mean", "ssim_mean", "images_per_second", "base_accuracy", "key_bytes_ratio"} <= set(
        results["metrics"]
    )


def test_the_attack_raises_the_target_and_keeps_the_best_iterate(base_model):
    model = checkpoints.load_model(base_model)
    images = datasets.load("scenes", **SMALL).x_test
    targets = (np.arange(len(images)) % 10).astype(np.int32)

    def loss(x):
        logits = model.predict(x, verbose=0).astype(np.float64)
        return (
            np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))
            + logits.max(1)
            - logits[np.arange(len(x)), targets]
        )

    clean = images / np.float32(255)
    losses = [loss(clean)]
    for steps in (1, 4, 12):
        attack = targeted_attack(model, eps=1.0, alpha=0.2, steps=steps)
        shift = attack.towards(images, targets).astype(np.float32)
        assert np.sqrt((shift.astype(np.float64) ** 2).sum(axis=(1, 2, 3))).max() <= 1.0 + 1e-3
        assert (clean + shift).min() >= -1e-3 and (clean + shift).max() <= 1 + 1e-3
        losses.append(loss(clean + shift))
    assert all((after <= before + 1e-3).all() for before, after in itertools.pairwise(losses))
    assert (losses[-1] < losses[0] - 0.005).all()


def test_methods_share_attacks(workplace, base_model):
    store = workplace / "store"
    count = lambda: len(list(store.rglob("*.npz")))  # noqa: E731
    lock(lock.options(**LOCK, model=base_model, lock_method="mixandcat", attack_store=store, name="all"))
    # Five blocks of 25 (60 and 20 pictures) towards four maps.
    assert count() == 4 * 4
    for method in ("basic", "mixup", "horiz"):
        lock(lock.options(**LOCK, model=base_model, lock_method=method, attack_store=store, name=method))
    assert count() == 4 * 4
    lock(lock.options(**{**LOCK, "eps": 0.9}, model=base_model, attack_store=store, name="other"))
    assert count() == 5 * 4


def test_the_store_changes_nothing(workplace, base_model):
    lock(lock.options(**LOCK, model=base_model, name="fresh", attack_store=workplace / "a"))
    lock(lock.options(**LOCK, model=base_model, name="again", attack_store=workplace / "a"))
    lock(lock.options(**LOCK, model=base_model, name="other", attack_store=workplace / "b"))
    runs = [workplace / "runs/adv_lock/lock" / name for name in ("fresh", "again", "other")]
    for name in ("locked/locked.npz", "key.npz", "locked/manifest.json"):
        assert len({files.sha256(run / name) for run in runs}) == 1, name


def test_interrupted_locking_resumes(workplace, base_model, monkeypatch):
    lock(lock.options(**LOCK, model=base_model, name="whole", attack_store=workplace / "a"))
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
        assert files.sha256(run / name) == files.sha256(workplace / "runs/adv_lock/lock/whole" / name)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    lock(lock.options(**options))
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_unlock_restores_every_pixel_and_refuses_what_is_not_whole(workplace, base_model):
    lock(lock.options(**LOCK, model=base_model))
    run = workplace / "runs/adv_lock/lock/demo"
    results = unlock(unlock.options())
    restored = files.read_npz(workplace / "runs/adv_lock/unlock/demo/original/original.npz")
    data = datasets.load("scenes", **SMALL)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert (restored[name] == getattr(data, name)).all()
    assert results["metrics"]["restored"] == 1.0
    assert results["metrics"]["key_bytes_ratio"] > 0

    lock(lock.options(**{**LOCK, "seed": 1}, model=base_model, name="other"))
    with pytest.raises(UserError, match="not the key of these pictures"):
        unlock(unlock.options(lock_data=run, key=workplace / "runs/adv_lock/lock/other/key.npz", name="wrong"))
    assert not (workplace / "runs/adv_lock/unlock/wrong/original/original.npz").exists()
    shared = run / "locked/locked.npz"
    shared.write_bytes(shared.read_bytes()[:-1])
    with pytest.raises(UserError, match="SHA-256 differs"):
        unlock(unlock.options(lock_data=run, name="damaged"))


def test_what_is_shared_says_nothing_about_the_key(workplace, base_model):
    lock(lock.options(**LOCK, model=base_model))
    run = workplace / "runs/adv_lock/lock/demo"
    shared = sorted(path.name for path in (run / "locked").rglob("*"))
    assert shared == ["locked.npz", "manifest.json"]
    manifest = json.loads((run / "locked/manifest.json").read_text())
    assert set(manifest) == {"method", "budget", "versions", "classes", "files"}
    assert manifest["files"] == [{"file": "locked.npz", "sha256": files.sha256(run / "locked/locked.npz")}]
    text = (run / "locked/manifest.json").read_text()
    key = locked_data.read_key(run / "key.npz")
    assert str(key.class_maps[0].tolist())[1:-1] not in text
    assert all(digest not in text for digest in key.about["originals_sha256"].values())
    assert str(workplace) not in text


def test_the_chain_makes_what_is_missing(workplace):
    fitting = {"epochs": 1, "batch_size": 32, **SMALL}
    train_base(train_base.options(**fitting))
    lock(lock.options(**LOCK))
    results = train(train.options(**fitting))
    metrics = results["metrics"]
    for name in ("original_accuracy", "original_accuracy_peak", "locked_accuracy", "reference_accuracy"):
        assert 0 <= metrics[name] <= 1
    assert 0 <= metrics["inverse_map_rate"] <= 1
    run = workplace / "runs/adv_lock/train/demo"
    curve = (run / "metrics.csv").read_text().splitlines()
    assert {"epoch", "original_accuracy", "locked_accuracy"} <= set(curve[0].split(",")) and len(curve) == 2
    assert (run / "crossing.png").is_file() and list((run / "tensorboard").iterdir())
    model = checkpoints.load_model(run / "model.keras")
    data = datasets.load("scenes", **SMALL)
    assert evaluation.accuracy(model, data.x_test, data.y_test) == pytest.approx(metrics["original_accuracy"])
    locked_test = stored(workplace / "runs/adv_lock/lock/demo", "x_test")
    assert evaluation.accuracy(model, locked_test, data.y_test) == pytest.approx(metrics["locked_accuracy"])
    with pytest.raises(UserError, match="seed"):
        train(train.options(**fitting, seed=1, out=workplace / "elsewhere"))


def test_the_thief_never_sees_the_originals(workplace, base_model):
    """The training pictures are the shared ones, bit by bit; the reference's are the originals."""
    lock(lock.options(**LOCK, model=base_model))
    run = workplace / "runs/adv_lock/lock/demo"
    data = locked_data.read_locked(run, 32)
    clean = datasets.load("scenes", **SMALL)
    assert (data.locked_train == stored(run, "x_train")).all() and (data.locked_train != clean.x_train).any()
    assert (data.original_train() == clean.x_train).all()
    assert (data.original_test == clean.x_test).all()
    assert (data.y_train == clean.y_train).all() and (data.y_test == clean.y_test).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "eps: must be above 0"),
        ({"attack_lr": 0}, "attack-lr: must be above 0"),
        ({"alpha": 1.5}, "alpha: is a share"),
        ({"lock_method": "rot13"}, "lock_method: expected one of basic, mixup, horiz, mixandcat"),
        ({"eps": -1}, "eps: expected a number >= 0"),
        ({"model": "nowhere.keras"}, "nowhere.keras: no such file"),
    ],
)
def test_bad_options_are_refused(workplace, base_model, settings, message):
    with pytest.raises(UserError, match=message):
        lock(lock.options(**{**LOCK, "model": base_model, **settings}))


def test_a_named_base_model_may_have_learnt_elsewhere(workplace):
    train_base(train_base.options(epochs=1, batch_size=32, **SMALL, seed=5, name="elsewhere"))
    base = workplace / "runs/adv_lock/train_base/elsewhere"
    for given in (base, base / "model.keras"):
        lock(lock.options(**LOCK, model=given, name=given.name))
    train_base(train_base.options(epochs=1, batch_size=32, **SMALL, seed=5))
    with pytest.raises(UserError, match="was run with seed 5, this run has 0"):
        lock(lock.options(**LOCK))


def test_a_base_model_of_another_class_count_is_refused(workplace, base_model_of_two):
    with pytest.raises(UserError, match="tells 2 classes apart, the data have 10"):
        lock(lock.options(**LOCK, model=base_model_of_two))


def test_an_output_that_cannot_be_written_is_refused(workplace, base_model):
    (workplace / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        lock(lock.options(**LOCK, model=base_model, out=workplace / "file" / "run"))
    assert (workplace / "file").read_text() == ""


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


def test_a_reference_of_another_recipe_is_refused(workplace, base_model):
    lock(lock.options(**LOCK, model=base_model))
    source = workplace / "runs/adv_lock/lock/demo"
    fitting = {"lock_data": source, "batch_size": 32, "epochs": 1}
    train(train.options(**fitting, train_on="original", name="reference"))
    reference = workplace / "runs/adv_lock/train/reference"
    with pytest.raises(UserError, match="has epochs 1, this run 2"):
        train(train.options(**{**fitting, "epochs": 2}, reference=reference))
    results = train(train.options(**fitting, reference=reference))
    assert not (workplace / "runs/adv_lock/train/demo/reference").exists()
    assert results["metrics"]["reference_accuracy"] >= 0


def test_models_that_hide_their_softmax_are_refused(workplace):
    import keras

    inputs = keras.Input((32, 32, 3))
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(inputs)))
    keras.Model(inputs, keras.ops.softmax(logits)).save(workplace / "hidden.keras")
    with pytest.raises(UserError, match=r"hidden\.keras: the model answers with probabilities"):
        lock(lock.options(**LOCK, model=workplace / "hidden.keras"))
