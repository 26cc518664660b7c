"""Digits: the data, their pairs, and the script that trains and attacks them."""

import csv

import numpy as np
import pytest

from common.errors import UserError
from face_mter import ad_mnist
from face_mter.ad_mnist import digit_pairs
from face_mter.data.digits import load_digit_images
from tests.helpers.face_toys import linear_network

SMALLEST = {"n_train": 160, "n_test": 90, "n_attack": 30, "far": 0.05, "emb_size": 8, "batch_size": 16, "steps": 2}


def check_results(folder, results):
    wanted = {f"accuracy_{name}_{eps}" for name in ("fgsm", "bim", "pgd40") for eps in (0.1, 0.2, 0.3)}
    assert wanted | {"clean_accuracy", "hit_rate_iftgsm_0.3"} <= set(results["metrics"])
    with open(folder / "runs/face_mter/ad_mnist/demo/table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["model"] for row in table} == {"none", "mter"}
    for eps in ("0.1", "0.2", "0.3"):
        mine = {
            row["attack"]: float(row["value"])
            for row in table
            if row["metric"] == "accuracy" and row["eps"] == eps and row["model"] == "mter"
        }
        assert mine["all"] <= min(mine.values())
    assert {"plane", "model_none", "model_mter"} <= set(results["artifacts"])
    return table


@pytest.mark.slow
def test_ad_mnist_on_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ad_mnist.Options(**SMALLEST, epochs=2, fine_epochs=1, loss_type="arcface")
    check_results(tmp_path, ad_mnist.ad_mnist(options))


def test_both_models_are_attacked_alike(tmp_path, monkeypatch):
    """With one network, not trained, in the place of both."""
    monkeypatch.chdir(tmp_path)
    network, asked = linear_network((8, 8, 1), 10), []

    def trained(options, run, strategy, data, name):
        asked.append(name)
        return network

    monkeypatch.setattr(ad_mnist, "_trained", trained)
    results = ad_mnist.ad_mnist(ad_mnist.Options(**SMALLEST))
    table = check_results(tmp_path, results)
    assert asked == ["none", "mter"]
    none, mter = ([row | {"model": ""} for row in table if row["model"] == name] for name in asked)
    assert none == mter
    data = load_digit_images(n_train=160, n_test=90)
    right = np.asarray(network(data.x_test / 255)).argmax(axis=1) == data.y_test
    assert results["metrics"]["clean_accuracy"] == pytest.approx(right.mean())
    assert results["metrics"]["clean_accuracy_n"] == 90 and results["metrics"]["accuracy_bim_0.2_n"] == 30
    # Stronger attacks, and larger budgets, take no fewer.
    value = {(row["attack"], row["eps"]): float(row["value"]) for row in mter if row["metric"] == "hit_rate"}
    assert value["clean", "0.0"] <= value["iftgsm", "0.1"] <= value["iftgsm", "0.2"] <= value["iftgsm", "0.3"]
    with pytest.raises(UserError, match="--attack: 'deepfool' is none of fgsm, bim, pgd40, margin100, autoattack_fast"):
        ad_mnist.refusals(ad_mnist.Options(attack=("fgsm", "deepfool")))
    with pytest.raises(UserError, match="--n-attack: 90 of 90 test images; leave some to calibrate"):
        ad_mnist.ad_mnist(ad_mnist.Options(**SMALLEST | {"n_attack": 90}, name="too many"))


def test_digits_are_split_once():
    data = load_digit_images()
    assert data.x_train.shape == (1300, 8, 8, 1) and data.x_test.shape == (497, 8, 8, 1)
    assert data.x_train.dtype == np.uint8 and data.x_train.max() == 255 and data.classes == 10
    assert set(np.unique(data.y_test)) == set(range(10))
    assert (load_digit_images(seed=3).x_test == data.x_test).all()
    with pytest.raises(UserError, match="--n-train: digits has 1300 images"):
        load_digit_images(n_train=1301)


def test_digit_pairs_are_of_different_digits():
    y = np.random.default_rng(0).integers(0, 10, 200)
    pairs = digit_pairs(y, 0)
    assert (pairs[:, 0] == np.arange(200)).all() and (y[pairs[:, 0]] != y[pairs[:, 1]]).all()
    assert (digit_pairs(y, 0) == pairs).all() and (digit_pairs(y, 1) != pairs).any()
