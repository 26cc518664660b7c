"""Arrays: budget, success, sharing of attacks, restoring, going on; and what lock.py and train.py refuse."""

import itertools
import json

import numpy as np
import pytest

from adv_lock import train as train_module
from adv_lock.attacks import locking, mixing
from adv_lock.attacks.targeted import targeted_attack
from adv_lock.data import locked
from adv_lock.lock import lock
from adv_lock.train import train
from adv_lock.train_base import train_base
from adv_lock.unlock import unlock
from common import files
from common.errors import UserError
from common.evaluation import predictions
from common.training import checkpoints

SMALL = {"n_train": 60, "n_test": 20}
LOCK = {**SMALL, "steps": 3, "eps": 1.0, "attack_lr": 0.4}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(locking, "_BLOCK", 25)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Attacks that the tests of this file share, as lock methods do."""
    return tmp_path_factory.mktemp("store")


def stored(run, name):
    return files.read_npz(run / "locked" / "locked.npz")[name]


@pytest.mark.parametrize("method", ["basic", "mixup", "horiz", "mixandcat"])
def test_stored_images_keep_the_budget_and_the_reported_success(
    tmp_path, store, lock_scenes, scenes, classifier, method
):
    """F4, B13: budget and success are recomputed from the file as a stranger reads it."""
    report = lock_scenes(method, tmp_path, store)
    key = locked.read_key(tmp_path / "key.npz")
    for split, x, y in (("train", scenes.x_train, scenes.y_train), ("test", scenes.x_test, scenes.y_test)):
        images = stored(tmp_path, f"x_{split}")
        assert images.dtype == np.uint8
        assert mixing.distances(x, images).max() <= 1.0
        assert (images != x).any(axis=(1, 2, 3)).all()
        classes = y if split == "train" else predictions.predict(classifier, x)
        hits = (predictions.predict(classifier, images) == key.class_maps[:, classes]).any(axis=0)
        assert (report.of("success", split) == hits).all()
        assert (stored(tmp_path, f"y_{split}") == y).all()
    assert report.of("share").max() <= 1.0
    assert report.of("psnr").min() >= 10 * np.log10(3072) - 1e-6


def test_the_attack_raises_the_target_and_keeps_the_best_iterate(classifier, scenes):
    images = scenes.x_test
    targets = (np.arange(len(images)) % 10).astype(np.int32)

    def loss(x):
        logits = classifier.predict(x, verbose=0).astype(np.float64)
        return (
            np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))
            + logits.max(1)
            - logits[np.arange(len(x)), targets]
        )

    clean = images / np.float32(255)
    losses = [loss(clean)]
    attack = targeted_attack(classifier, eps=1.0, alpha=0.2, steps=12)
    for steps in ({"steps": 1}, {"steps": 4}, {}):
        shift = attack.perturb(images, targets, **steps).astype(np.float32)
        assert np.sqrt((shift.astype(np.float64) ** 2).sum(axis=(1, 2, 3))).max() <= 1.0 + 1e-3
        assert (clean + shift).min() >= -1e-3 and (clean + shift).max() <= 1 + 1e-3
        losses.append(loss(clean + shift))
    assert all((after <= before + 1e-3).all() for before, after in itertools.pairwise(losses))
    assert (losses[-1] < losses[0] - 0.005).all()


def test_methods_share_attacks(tmp_path, lock_scenes, classifier):
    store = tmp_path / "store"
    count = lambda: len(list(store.rglob("*.npz")))  # noqa: E731
    lock_scenes("mixandcat", tmp_path / "all", store)
    # Five blocks of 25 (60 and 20 images) towards four maps.
    assert count() == 4 * 4
    for method in ("basic", "mixup", "horiz"):
        lock_scenes(method, tmp_path / method, store)
    assert count() == 4 * 4
    other = targeted_attack(classifier, eps=0.9, alpha=0.4, steps=3)
    lock_scenes("basic", tmp_path / "other", store, attack=other, eps=0.9)
    assert count() == 5 * 4


def test_the_store_changes_nothing(tmp_path, lock_scenes):
    for name, store in (("fresh", "a"), ("again", "a"), ("other", "b")):
        lock_scenes("basic", tmp_path / name, tmp_path / store)
    for name in ("locked/locked.npz", "key.npz", "locked/manifest.json"):
        assert len({files.sha256(tmp_path / run / name) for run in ("fresh", "again", "other")}) == 1, name


def test_an_interrupted_lock_leaves_its_attacks_and_nothing_to_share(tmp_path, lock_scenes, monkeypatch):
    lock_scenes("basic", tmp_path / "whole", tmp_path / "a")
    real, calls = locking._lock_block, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(locking, "_lock_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock_scenes("basic", tmp_path / "broken", tmp_path / "b")
    assert not (tmp_path / "broken/locked/locked.npz").exists() and not (tmp_path / "broken/key.npz").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*.npz")}
    assert len(kept) == 2
    monkeypatch.setattr(locking, "_lock_block", real)
    lock_scenes("basic", tmp_path / "broken", tmp_path / "b")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in ("locked/locked.npz", "key.npz"):
        assert files.sha256(tmp_path / "broken" / name) == files.sha256(tmp_path / "whole" / name)


def test_the_thief_never_sees_the_originals(tmp_path, store, lock_scenes, scenes):
    """The training images are the shared ones, bit by bit; the reference's are the originals, by the key."""
    lock_scenes("basic", tmp_path, store)
    data = locked.read_locked(tmp_path, 32)
    assert (data.locked_train == stored(tmp_path, "x_train")).all() and (data.locked_train != scenes.x_train).any()
    assert (data.original_train() == scenes.x_train).all()
    assert (data.original_test == scenes.x_test).all()
    assert (data.y_train == scenes.y_train).all() and (data.y_test == scenes.y_test).all()


def test_transfer_is_to_the_class_that_was_written(tmp_path, store, lock_scenes, scenes, classifier):
    """Test images are locked by what the base classifier answers, which is not always their label."""
    lock_scenes("basic", tmp_path, store)
    data = locked.read_locked(tmp_path, 32)
    answers = predictions.predict(classifier, scenes.x_test)
    assert (data.written_test == data.class_maps[0][answers]).all() and (answers != scenes.y_test).any()
    history = [{"original_accuracy": 0.5, "locked_accuracy": 0.5}]
    found = train_module._metrics(train_module.Options(train_on="original"), classifier, history, data)
    seen = predictions.predict(classifier, data.locked_test)
    by_label = np.mean(seen == data.class_maps[0][data.y_test])
    assert found["transfer_success"] == np.mean(seen == data.written_test) > by_label


def test_another_key_and_damaged_images_are_refused(workplace, store, lock_scenes):
    for name, seed in (("run", 0), ("other", 1)):
        lock_scenes("basic", workplace / name, store, seed=seed)
    run = workplace / "run"
    with pytest.raises(UserError, match="not the key of these images"):
        unlock(unlock.options(lock_data=run, key=workplace / "other/key.npz", name="wrong"))
    assert not (workplace / "runs/adv_lock/unlock/wrong/original/original.npz").exists()
    shared = run / "locked/locked.npz"
    shared.write_bytes(shared.read_bytes()[:-1])
    with pytest.raises(UserError, match="SHA-256 differs"):
        unlock(unlock.options(lock_data=run, name="damaged"))
    with pytest.raises(UserError, match="SHA-256 differs"):
        locked.read_locked(run, 32)


def test_what_is_shared_says_nothing_about_the_key(tmp_path, store, lock_scenes):
    lock_scenes("basic", tmp_path, store)
    shared = sorted(path.name for path in (tmp_path / "locked").rglob("*"))
    assert shared == ["locked.npz", "manifest.json"]
    manifest = json.loads((tmp_path / "locked/manifest.json").read_text())
    assert set(manifest) == {"method", "budget", "versions", "classes", "labels", "files"}
    assert manifest["files"] == [{"file": "locked.npz", "sha256": files.sha256(tmp_path / "locked/locked.npz")}]
    text = (tmp_path / "locked/manifest.json").read_text()
    key = locked.read_key(tmp_path / "key.npz")
    assert str(key.class_maps[0].tolist())[1:-1] not in text
    assert all(digest not in text for digest in key.about["originals_sha256"].values())
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "eps: must be above 0"),
        ({"attack_lr": 0}, "attack-lr: must be above 0"),
        ({"alpha": 1.5}, "alpha: must be at most 1"),
        ({"lock_method": "rot13"}, "lock_method: expected one of basic, mixup, horiz, mixandcat"),
        ({"eps": -1}, "eps: expected a number >= 0"),
        ({"model": "nowhere.keras"}, "nowhere.keras: no such file"),
    ],
)
def test_bad_options_are_refused(workplace, base_model, settings, message):
    with pytest.raises(UserError, match=message):
        lock(lock.options(**{**LOCK, "model": base_model, **settings}))
    assert not (workplace / "runs").exists() or not list((workplace / "runs").rglob("config.yaml"))


def test_a_base_model_found_by_default_must_have_learnt_from_the_same_images(workplace, classifier, monkeypatch):
    def saved(options, run):
        checkpoints.save_model(classifier, run.folder / "model.keras")

    monkeypatch.setattr(train_base, "body", saved)
    train_base(train_base.options(**SMALL, seed=5))
    with pytest.raises(UserError, match="was run with seed 5, this run has 0"):
        lock(lock.options(**LOCK))


def test_a_base_model_of_another_class_count_is_refused(workplace, base_model_of_two):
    with pytest.raises(UserError, match="has 2 classes, the images have 10"):
        lock(lock.options(**LOCK, model=base_model_of_two))


def test_an_output_that_cannot_be_written_is_refused(workplace, base_model):
    (workplace / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        lock(lock.options(**LOCK, model=base_model, out=workplace / "file" / "run"))
    assert (workplace / "file").read_text() == ""


def test_models_that_hide_their_softmax_are_refused(workplace):
    import keras

    inputs = keras.Input((32, 32, 3))
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(inputs)))
    keras.Model(inputs, keras.ops.softmax(logits)).save(workplace / "hidden.keras")
    with pytest.raises(UserError, match=r"hidden\.keras: the model answers with probabilities"):
        lock(lock.options(**LOCK, model=workplace / "hidden.keras"))


def test_a_reference_of_another_recipe_is_refused(workplace, store, lock_scenes, monkeypatch):
    """A training on locked images and its reference: one recipe, the same images, and the originals for the other."""
    source, other = workplace / "source", workplace / "other"
    lock_scenes("basic", source, store)
    lock_scenes("horiz", other, store)

    def trained(options, run):
        data = locked.read_locked(options.lock_data, 32)
        run.data(data.name, data.sha256)
        run.metrics(original_accuracy=0.5, original_accuracy_n=20)

    fitting = {"batch_size": 32, "epochs": 1}
    with monkeypatch.context() as patch:
        patch.setattr(train, "body", trained)
        for name, settings in (
            ("reference", {"lock_data": source, "train_on": "original"}),
            ("trained", {"lock_data": source}),
            ("elsewhere", {"lock_data": other, "train_on": "original"}),
        ):
            train(train.options(**fitting, **settings, name=name))
    for epochs, name, message in (
        (2, "reference", "has epochs 1, this run 2"),
        (1, "trained", "is not a run of train.py with --train-on original"),
        (1, "elsewhere", "was trained on other data than"),
    ):
        reference = workplace / "runs/adv_lock/train" / name
        wanted = {**fitting, "epochs": epochs, "lock_data": source, "reference": reference, "name": "refused"}
        with pytest.raises(UserError, match=message):
            train(train.options(**wanted))
    assert not (workplace / "runs/adv_lock/train/refused/model.keras").exists()
