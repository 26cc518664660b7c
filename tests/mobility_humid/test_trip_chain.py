"""The scripts from trips to tables and figures: training, attacks, hardening."""

import json

import pytest

from common.runs.record import read_results, read_table
from common.training import checkpoints
from mobility_humid.attacks.trips import trip_attack
from mobility_humid.classification import classification
from mobility_humid.classification_attack import classification_attack
from mobility_humid.fast_adversarial_train import fast_adversarial_train
from mobility_humid.siamese_attack import siamese_attack
from tests.helpers.trip_toys import SMALLEST, answers, verifier_file

pytestmark = pytest.mark.slow

TRAINED = {"n_train": 64, "epochs": 1, "batch_size": 32, "units": (8, 8, 4)}
ATTACKED = {"attack": ("st_ifgsm_l0",), "curve": (1,), "steps": 6, "n_slow": 10}
ENDINGS = ("", "_n", "_low", "_high")
RUNS = "runs/mobility_humid"


@pytest.fixture(scope="module")
def chain(tmp_path_factory, tiny_file):
    """A folder in which fast_adversarial_train.py ran with nothing there, which trains a verifier first, and then
    siamese_attack.py on that verifier; and the results of both."""
    folder = tmp_path_factory.mktemp("trips")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("mobility_humid.train._BASELINE_PAIRS", 60)
        trained = SMALLEST | TRAINED | {"encoder": "places"}
        (folder / "tiny.yaml").write_text(f"train: {json.dumps(trained)}\n")
        shared = {"dataset": str(tiny_file), **SMALLEST}
        fast_st_fgsm_training = {"epochs": 2, "n_train": 64, "train_batch_size": 16, "rounds": 2, "n_watch": 8}
        attacks = {"steps": 3, "restarts": 1, "n_slow": 8}
        hardened = fast_adversarial_train(
            fast_adversarial_train.options(**shared, **fast_st_fgsm_training, **attacks, config=folder / "tiny.yaml")
        )
        attacked = siamese_attack(siamese_attack.options(**shared, **ATTACKED))
    return folder, hardened, attacked


def test_the_verifier_is_trained_and_judged_beside_the_baselines(chain):
    metrics = read_results(chain[0] / RUNS / "train/tiny")["metrics"]
    assert {"accuracy_seen", "accuracy_unseen", "auc_seen", "heat_map_auc_unseen"} <= set(metrics)


def test_siamese_attack_from_the_trips_to_the_figures(chain):
    """G6 as a function: the verifier is trained in its place, then attacked there; B13: recomputed from the rows."""
    folder, _, results = chain
    metrics = results["metrics"]
    rates = {f"{kind}_accuracy_{part}" for kind in ("clean", "attacked", "noise") for part in ("seen", "unseen")}
    directions = {f"success_rate_{d}_{p}" for d in ("impersonation", "dodging") for p in ("seen", "unseen")}
    rates |= directions & set(metrics)
    sizes = {"changed_points_mean", "changed_points_share", "displacement_cells_max"}
    sizes |= {"largest_jump_before", "largest_jump_after", "auc_seen", "auc_unseen"}
    assert set(metrics) == {rate + ending for rate in rates for ending in ENDINGS} | sizes
    assert rates & directions and metrics["displacement_cells_max"] <= 2
    for part in ("seen", "unseen"):
        assert metrics[f"attacked_accuracy_{part}"] <= metrics[f"clean_accuracy_{part}"]
        assert metrics[f"clean_accuracy_{part}_n"] == 24
    place = folder / RUNS / "siamese_attack/tiny"
    assert {"trips", "map", "success_eta", "success_points"} == set(results["artifacts"])
    assert all((place / file).is_file() for file in results["artifacts"].values())
    table = read_table(place)
    assert {(row["attack"], row["eps"]) for row in table} == {
        *(("st_ifgsm_linf", eta) for eta in (1, 2)),
        *(("noise", eta) for eta in (1, 2)),
        ("st_ifgsm_l0", 2),
        ("all", 2),
        # What no attack can change.
        (None, None),
    }
    by_hand = {
        (row["attack"], row["split"]): row for row in table if row["metric"] == "attacked_accuracy" and row["eps"] == 2
    }
    for part in ("seen", "unseen"):
        assert by_hand["st_ifgsm_linf", part]["value"] == pytest.approx(metrics[f"attacked_accuracy_{part}"])
        assert by_hand["noise", part]["value"] == pytest.approx(metrics[f"noise_accuracy_{part}"])
        assert by_hand["st_ifgsm_l0", part]["n"] == by_hand["all", part]["n"] == 10


def test_the_script_hardens_and_attacks_before_and_after(chain):
    folder, results, _ = chain
    for key in ("clean_accuracy", "attacked_accuracy"):
        for when in ("before", "after"):
            assert 0 <= results["metrics"][f"{key}_{when}"] <= 1 and results["metrics"][f"{key}_{when}_n"] == 48
    assert {"model_fast", "model_pgd", "defence"} <= set(results["artifacts"])
    curves = (folder / RUNS / "fast_adversarial_train/tiny/metrics.csv").read_text().splitlines()
    assert len(curves) == 1 + 2 * 2 and "validation_attacked_accuracy" in curves[0]
    # The model before is left as it was.
    assert (folder / RUNS / "train/tiny/model.keras").is_file()


def test_b13_success_is_counted_again_on_what_comes_out(tmp_path, monkeypatch, tiny_fleet, tiny_file):
    """Among pairs that were right, on whole cells: the reported rates are those of a count by hand."""
    monkeypatch.chdir(tmp_path)
    fleet = tiny_fleet(n_test=40)
    path = verifier_file(tmp_path / "mine.keras", fleet)
    options = siamese_attack.options(
        dataset=str(tiny_file), **SMALLEST | {"n_test": 40}, **ATTACKED | {"attack": (), "curve": ()}, model=path
    )
    metrics = siamese_attack(options)["metrics"]
    model = checkpoints.load_model(path)
    for part in ("seen", "unseen"):
        pairs = fleet.pairs(part, 40)
        x, y = fleet.samples(pairs), pairs.same
        where = {"name": "st_ifgsm_linf", "layout": fleet.layout, "grid": fleet.trips.grid.size}
        moved = trip_attack(model, x, y, eta=2, steps=6, **where)
        right, fooled = answers(model, x) == y, answers(model, moved) != y
        assert metrics[f"clean_accuracy_{part}"] == pytest.approx(right.mean())
        assert metrics[f"attacked_accuracy_{part}"] == pytest.approx((right & ~fooled).mean())
        for name, among in (("impersonation", right & (y == 0)), ("dodging", right & (y == 1))):
            assert metrics[f"success_rate_{name}_{part}"] == pytest.approx(fooled[among].mean())
            assert metrics[f"success_rate_{name}_{part}_n"] == among.sum()


def test_classification_attack_from_the_trips_to_the_figures(tmp_path, monkeypatch, tiny_file):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mobility_humid.classification._BASELINE_SAMPLES", 10)
    shared = {"dataset": str(tiny_file), "num_plates": 4, **SMALLEST}
    classification(classification.options(**shared, **TRAINED, encoder="lstm"))
    results = classification_attack(classification_attack.options(**shared, **ATTACKED | {"attack": ("st_fgsm_l2",)}))
    metrics = results["metrics"]
    for name in ("clean_accuracy", "attacked_accuracy", "noise_accuracy"):
        assert all(name + ending in metrics for ending in ENDINGS)
    assert {"changed_points_mean", "displacement_cells_max", "largest_jump_after"} <= set(metrics)
    assert "success_rate" in metrics or metrics["clean_accuracy"] == 0
    table = read_table(tmp_path / RUNS / "classification_attack/tiny")
    # One attack a threat model: there is nothing to unite.
    assert {row["attack"] for row in table} == {"st_ifgsm_linf", "st_fgsm_l2", "noise", None}
