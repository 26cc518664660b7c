"""Certified verifiers as a script: folds, verifiers, rows."""

import numpy as np
import pytest

from common.errors import UserError
from common.runs.record import read_table
from common.training import checkpoints
from mobility_humid.certify import certify
from mobility_humid.data.pairs import split_drivers
from mobility_humid.train import Options as TrainOptions
from mobility_humid.train import load_fleet
from tests.helpers.trip_toys import SMALLEST

FITTED = {"n_train": 60, "n_fixed": 60, "epochs": 2, "batch_size": 20, "steps": 3, "n_attack": 10}


@pytest.mark.slow
def test_each_verifier_of_each_fold_is_certified_and_attacked(tmp_path, monkeypatch, tiny_file):
    monkeypatch.chdir(tmp_path)
    options = certify.options(
        dataset=str(tiny_file), **SMALLEST, **FITTED, folds=2, reads=("strict",), train_eps=(0, 1)
    )
    results = certify(options)
    rows = read_table(next((tmp_path / "runs/mobility_humid/certify").iterdir()))
    names = {"strict_0", "strict_1"}
    assert {row["model"] for row in rows} == names | {"served_trips", "heat_map", "constant"}
    value = {
        (row["model"], row["split"], row["metric"], row["eps"]): row["value"]
        for row in rows
        if row["clip"] is None and row["fold"] is None
    }
    clip = {
        (row["model"], row["split"], row["metric"], float(row["clip"])): row["value"]
        for row in rows
        if row["clip"] is not None
    }
    of_folds = [float(row["fold"]) for row in rows if row["fold"] is not None and row["metric"] == "clean_accuracy"]
    assert sorted(set(of_folds)) == [0.0, 1.0] and len(of_folds) == 2 * 2 * 5
    for name in names:
        for part in ("seen", "unseen"):
            clean, near, far = (
                value[name, part, metric, eps]
                for metric, eps in (
                    ("clean_accuracy", None),
                    ("certified_accuracy", 1.0),
                    ("certified_accuracy", 2.0),
                )
            )
            assert clean >= near >= far
            for eps in (1.0, 2.0):
                certain = value[name, part, "certified_accuracy_of_attacked", eps]
                assert value[name, part, "attacked_accuracy", eps] >= certain
            assert clip[name, part, "clip_certified", 0.0] == clip[name, part, "clip_clean", 0.0]
            assert clip[name, part, "clip_clean", 1.0] == clean
            assert clip[name, part, "clip_certified", 1.0] <= clip[name, part, "clip_clean", 1.0]
            steps = [clip[name, part, "clip_certified", share] for share in (0.0, 0.1, 0.5, 1.0)]
            assert steps == sorted(steps, reverse=True)
    assert results["metrics"]["certified_accuracy_strict_1_2_n"] == 2 * SMALLEST["n_test"]
    model = checkpoints.load_model(next(tmp_path.rglob("strict_1_fold1.keras")))
    fleet = load_fleet(TrainOptions(dataset=str(tiny_file), **SMALLEST, fold=1), print, sides=2)
    pairs = fleet.pairs("unseen", 10)
    assert np.isfinite(np.asarray(model(fleet.samples(pairs)))).all()


def test_folds_share_no_unseen_driver_and_leave_none_out(tiny_trips):
    settings = {"seed": 0, "test_days": 1, "validation_days": 1}
    folds = [split_drivers(tiny_trips, unseen_share=0.25, fold=fold, **settings) for fold in range(4)]
    unseen = np.concatenate([split.unseen for split in folds])
    assert len(unseen) == len(set(unseen)) >= len(tiny_trips.drivers) - 3
    for split in folds:
        assert sorted([*split.seen, *split.unseen]) == list(range(len(tiny_trips.drivers)))
    with pytest.raises(UserError, match=r"--fold: 9, but \d+ drivers make \d disjoint folds of \d unseen"):
        split_drivers(tiny_trips, unseen_share=0.25, fold=9, **settings)


def test_only_pairs_with_served_trips_are_certified(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        certify.main(["--traj-type", "seek"])
    assert "--traj-type: a certificate rests on served trips" in capsys.readouterr().err
