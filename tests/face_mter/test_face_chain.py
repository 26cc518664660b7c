"""The scripts on faces, from drawn portraits to tables and figures."""

import csv

import pytest

from face_mter import ad_face, attack, train, verify
from face_mter.data.faces import load_faces

pytestmark = pytest.mark.slow

PEOPLE = {"image_size": 16, "n_train": 6, "seed": 0}


def rows(folder):
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which attack.py ran with nothing there, on two models beside the two it makes."""
    folder = tmp_path_factory.mktemp("faces")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.train(train.Options(**PEOPLE, emb_size=8, epochs=1, batch_size=16, margin_s=16.0))
        for method in ("adv", "none"):
            fine = {"epochs": 1, "batch_size": 8, "steps": 2, "method": method}
            ad_face.ad_face(ad_face.Options(**PEOPLE, **fine, name=None if method == "adv" else method))
        options = attack.Options(
            **PEOPLE,
            far=0.01,
            n_folded=20,
            n_test=30,
            curve=(2 / 255, 10 / 255),
            steps=4,
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
    assert {("iftgsm", "base"), ("pgd", "hardened")} <= {(row["attack"], row["source"]) for row in table}


def test_the_base_model_is_judged_the_same_at_all_three_thresholds(chain):
    table = rows(chain[0] / "runs/face_mter/attack/demo")
    at = {
        metric: [
            (row["attack"], row["eps"], row["value"])
            for row in table
            if row["model"] == "base" and row["metric"] == metric and not row["source"]
        ]
        for metric in ("hit_rate", "hit_rate_base_threshold")
    }
    assert at["hit_rate"] == at["hit_rate_base_threshold"] and len(at["hit_rate"]) >= 8


def test_verify_of_images_and_clips(chain, monkeypatch, tmp_path):
    from common.datasets.images import write_png

    folder, _ = chain
    monkeypatch.chdir(folder)
    faces = load_faces("portraits", image_size=16)
    for row in range(20 * 24):
        person, image = divmod(row, 20)
        clip = tmp_path / faces.names[person] / f"clip{image // 5}"
        clip.mkdir(parents=True, exist_ok=True)
        write_png(clip / f"{image}.png", faces.images[row])
    results = verify.verify_model(verify.Options(**PEOPLE, far=0.01, n_folded=6, clips=tmp_path))
    metrics = results["metrics"]
    assert {"verification_accuracy", "tar_at_far_1e-2", "threshold", "clip_accuracy", "mean_cosine"} <= set(metrics)
    assert metrics["clip_accuracy_n"] == 120 and metrics["verification_accuracy_n"] == 120
    assert (folder / results["artifacts"]["roc"]).exists() or (
        folder / "runs/face_mter/verify/demo" / results["artifacts"]["roc"]
    ).exists()
