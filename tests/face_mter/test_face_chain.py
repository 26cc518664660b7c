"""The five scripts, from drawn portraits and digits to tables and figures."""

import csv
import shutil

import numpy as np
import pytest

from common.errors import UserError
from face_mter import ad_face, ad_mnist, attack, train, verify
from face_mter.ad_mnist import digit_pairs
from face_mter.digits import load_digit_pictures
from face_mter.faces import load_faces, load_pairs

PEOPLE = {"image_size": 24, "n_train": 6, "seed": 0}


def rows(folder):
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which attack.py ran with nothing there, on two models beside the two it makes."""
    folder = tmp_path_factory.mktemp("faces")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.train(train.Options(**PEOPLE, emb_size=8, epochs=2, batch_size=16, margin_s=16.0))
        for method in ("adv", "none"):
            fine = {"epochs": 1, "batch_size": 8, "adv_round": 2, "method": method}
            ad_face.ad_face(ad_face.Options(**PEOPLE, **fine, name=None if method == "adv" else method))
        options = attack.Options(
            **PEOPLE,
            far=0.01,
            n_folded=20,
            n_pairs=30,
            curve=(2 / 255, 10 / 255),
            pgd_steps=4,
            restarts=1,
            others=("runs/face_mter/ad_face/none",),
        )
        results = attack.attack(options)
        yield folder, results


def test_attack_writes_what_the_issue_names(chain):
    folder, results = chain
    keys = {
        f"hit_rate_{name}" for name in ("fftgsm_10", "iftgsm_5", "iftgsm_10", "itgsm_10", "pgd_10", "noise_10", "clean")
    }
    keys |= {"threshold", "verification_accuracy"}
    assert {key + ending for key in keys for ending in ("", "_base")} <= set(results["metrics"])
    assert {"faces", "hit_rate", "pairs", "pairs_itgsm"} <= set(results["artifacts"])
    table = rows(folder / "runs/face_mter/attack/demo")
    assert {row["model"] for row in table} == {"base", "hardened", "none"}
    metrics = {row["metric"] for row in table}
    assert {"hit_rate", "hit_rate_float", "hit_rate_base_threshold", "hit_rate_equal_tar", "mean_cosine"} <= metrics
    assert {"verification_accuracy_less_base", "hit_rate_less_base", "hit_rate_less_hardened"} <= metrics
    assert {"iftgsm on base", "pgd on hardened"} <= {row["attack"] for row in table}


def test_the_base_model_is_judged_the_same_at_all_three_thresholds(chain):
    table = rows(chain[0] / "runs/face_mter/attack/demo")
    at = {
        metric: [
            (row["attack"], row["eps"], row["value"])
            for row in table
            if row["model"] == "base" and row["metric"] == metric and " on " not in row["attack"]
        ]
        for metric in ("hit_rate", "hit_rate_base_threshold")
    }
    assert at["hit_rate"] == at["hit_rate_base_threshold"] and len(at["hit_rate"]) >= 8


def test_lists_are_of_different_people_who_did_not_train(chain):
    folder, _ = chain
    faces = load_faces("portraits", image_size=24)
    run = folder / "runs/face_mter/attack/demo"
    pairs, labelled = (load_pairs(run / f"{name}.csv", faces) for name in ("pairs", "pairs_itgsm"))
    assert (faces.person[pairs[:, 0]] != faces.person[pairs[:, 1]]).all() and len(pairs) == len(labelled) == 30
    trained = set(faces.person[labelled[:, 1]])
    assert len(trained) <= 6 and not trained & set(faces.person[pairs].reshape(-1))


def test_a_list_can_be_used_again_and_must_fit(chain, monkeypatch):
    folder, _ = chain
    monkeypatch.chdir(folder)
    run = folder / "runs/face_mter/attack/demo"
    small = {"far": 0.01, "n_folded": 20, "curve": (2 / 255,), "pgd_steps": 2, "restarts": 1}
    again = attack.Options(**PEOPLE, **small, n_pairs=10, name="again", attack_pairs=run / "pairs.csv")
    for option in ("model", "base_model"):
        setattr(
            again, option, folder / f"runs/face_mter/{'ad_face' if option == 'model' else 'train'}/demo/model.keras"
        )
    attack.attack(again)
    first = (run / "pairs.csv").read_text().splitlines()[:11]
    assert (folder / "runs/face_mter/attack/again/pairs.csv").read_text().splitlines() == first
    again.name, again.attack_pairs = "wrong", run / "pairs_itgsm.csv"
    with pytest.raises(UserError, match="is not in the attack half"):
        attack.attack(again)


def test_verify_of_pictures_and_clips(chain, monkeypatch, tmp_path):
    from common.datasets.readers import write_png

    folder, _ = chain
    monkeypatch.chdir(folder)
    faces = load_faces("portraits", image_size=24)
    for row in range(20 * 24):
        person, picture = divmod(row, 20)
        clip = tmp_path / faces.names[person] / f"clip{picture // 5}"
        clip.mkdir(parents=True, exist_ok=True)
        write_png(clip / f"{picture}.png", faces.images[row])
    results = verify.verify_model(verify.Options(**PEOPLE, far=0.01, n_folded=6, clips=tmp_path))
    metrics = results["metrics"]
    assert {"verification_accuracy", "tar_at_far_1e-2", "threshold", "clip_accuracy", "mean_cosine"} <= set(metrics)
    assert metrics["clip_accuracy_n"] == 120 and metrics["verification_accuracy_n"] == 120
    assert (folder / results["artifacts"]["roc"]).exists() or (
        folder / "runs/face_mter/verify/demo" / results["artifacts"]["roc"]
    ).exists()


def test_models_of_other_people_or_pictures_are_refused(chain, monkeypatch, tmp_path):
    folder, _ = chain
    monkeypatch.chdir(folder)
    own = folder / "runs/face_mter/train/demo/model.keras"
    with pytest.raises(UserError, match="was run with n_train 6, this run has 7"):
        ad_face.ad_face(ad_face.Options(**{**PEOPLE, "n_train": 7}, pretrained=own, name="seven"))
    # Of a file elsewhere nobody knows how it was trained.
    model = shutil.copy(own, tmp_path / "elsewhere.keras")
    with pytest.raises(UserError, match="knows 6 people, 7 train here"):
        ad_face.ad_face(ad_face.Options(**{**PEOPLE, "n_train": 7}, pretrained=model, name="seven again"))
    with pytest.raises(UserError, match="takes pictures of 24 x 24 x 3, these are 32 x 32 x 3"):
        verify.verify_model(verify.Options(**{**PEOPLE, "image_size": 32}, model=model, name="large"))


@pytest.mark.parametrize("loss_type", ["softmax", "arcface"])
def test_ad_mnist_on_digits(tmp_path, monkeypatch, loss_type):
    monkeypatch.chdir(tmp_path)
    options = ad_mnist.Options(
        n_train=160,
        n_test=90,
        n_attack=30,
        far=0.05,
        emb_size=8,
        epochs=2,
        fine_epochs=1,
        batch_size=16,
        adv_round=2,
        loss_type=loss_type,
    )
    results = ad_mnist.ad_mnist(options)
    wanted = {f"accuracy_{name}_{eps}" for name in ("fgsm", "bim", "pgd40") for eps in (0.1, 0.2, 0.3)}
    assert wanted | {"clean_accuracy", "hit_rate_iftgsm_0.3"} <= set(results["metrics"])
    table = rows(tmp_path / "runs/face_mter/ad_mnist/demo")
    assert {row["model"] for row in table} == {"none", "mter"}
    for eps in ("0.1", "0.2", "0.3"):
        mine = {
            row["attack"]: float(row["value"])
            for row in table
            if row["metric"] == "accuracy" and row["eps"] == eps and row["model"] == "mter"
        }
        assert mine["all"] <= min(mine.values())
    assert {"plane", "model_none", "model_mter"} <= set(results["artifacts"])


def test_digits_are_split_once():
    data = load_digit_pictures(ad_mnist.Options())
    assert data.x_train.shape == (1300, 8, 8, 1) and data.x_test.shape == (497, 8, 8, 1)
    assert data.x_train.dtype == np.uint8 and data.x_train.max() == 255 and data.classes == 10
    assert set(np.unique(data.y_test)) == set(range(10))
    assert (load_digit_pictures(ad_mnist.Options(seed=3)).x_test == data.x_test).all()
    with pytest.raises(UserError, match="--n-train: digits has 1300 pictures"):
        load_digit_pictures(ad_mnist.Options(n_train=1301))


def test_digit_pairs_are_of_different_digits():
    y = np.random.default_rng(0).integers(0, 10, 200)
    pairs = digit_pairs(y, 0)
    assert (pairs[:, 0] == np.arange(200)).all() and (y[pairs[:, 0]] != y[pairs[:, 1]]).all()
    assert (digit_pairs(y, 0) == pairs).all() and (digit_pairs(y, 1) != pairs).any()
