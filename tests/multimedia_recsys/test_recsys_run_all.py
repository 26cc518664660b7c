"""run_all.py: what it asks of the other scripts, and how it joins what they leave; the work is taken out of them."""

from dataclasses import replace

import pytest

from common.errors import UserError
from common.runs.record import read_results, read_table
from multimedia_recsys import run_all
from tests.helpers.recsys_toys import QUALITY, SHOP, SUCCESS, stub

ATTACKS = {"fgsm_8", "pgd_8", "noise_8", "swap", "insa_8_vbpr", "insa_8_amr"}
RETRAINED = {"pgd_8", "noise_8", "swap"}


CONFIG = """
results_analyzer: {top_k: 20}
run_all: {top_k: 20, pairs: near, cnns: "standard,robust"}
"""


def joined(folder, **settings):
    """The results of run_all.py in `folder`, and what has run for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "tiny.yaml").write_text(CONFIG)
        ran = stub(patch)
        options = run_all.run_all.parse(["--config", "tiny.yaml"])
        return run_all.run_all(replace(options, **{**SHOP, **settings})), ran


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder in which run_all.py joined two networks, its results, and which scripts ran."""
    folder = tmp_path_factory.mktemp("shop")
    return folder / "runs/multimedia_recsys", *joined(folder)


def test_run_all_writes_what_the_issue_names(whole):
    folder, results, _ = whole
    keys = {"hr_at_10", "ndcg_at_10", "auc", "attack_success", "psnr_mean", "ssim_mean", "psm_mean", "mean_rank_shift"}
    keys |= {f"chr_{name}" for name in ("origin_clean", "origin_attacked", "origin_noise", "target_clean")}
    assert keys <= set(results["metrics"])
    table = read_table(folder / "run_all/tiny")
    models = {(row["model"], row["threat"]) for row in table}
    assert {(kind, threat) for kind in ("vbpr", "amr") for threat in ("frozen", "retrained")} <= models
    assert {("bprmf", None), ("popularity", None)} <= models
    assert {row["attack"] for row in table} - {None} == ATTACKS
    assert {("standard", "near"), ("robust", "near")} <= {(row["cnn"], row["pair"]) for row in table}
    # An attack on one recommender is judged on that one.
    lifts = [row for row in table if row["attack"] == "insa_8_amr" and row["metric"] == "chr_lift"]
    assert {(row["model"], row["threat"]) for row in lifts} == {("amr", "frozen")}
    assert (folder / "run_all/tiny/lift.png").is_file()


def test_the_figures_of_run_all_are_those_of_its_parts(whole):
    folder, results, _ = whole
    metrics = results["metrics"]
    assert {name: metrics[f"{name}_mean"] for name in ("psnr", "ssim", "psm")} == {
        name: QUALITY[name] for name in ("psnr", "ssim", "psm")
    }
    analysis = read_table(folder / "results_analyzer/tiny")
    shares = {row["split"]: row["value"] for row in analysis if row["metric"] == "chr"}
    proposed = read_results(folder / "results_analyzer/tiny")["metrics"]
    assert metrics["chr_origin_clean"] == proposed["chr_origin"] and metrics["chr_origin_clean"] in shares.values()
    assert metrics["chr_target_clean"] == proposed["chr_near"]
    assert metrics["attack_success"] == SUCCESS["pgd"] and metrics["attack_success_n"] == 15
    table = read_table(folder / "run_all/tiny")
    # Rows of the parts, with network, pair and attack in their place.
    found = {row["attack"]: row["value"] for row in table if row["metric"] == "attack_success"}
    assert found == {name: SUCCESS[name.split("_")[0]] for name in ATTACKS}
    psnr = {(row["cnn"], row["pair"], row["split"]) for row in table if row["metric"] == "psnr"}
    assert psnr == {(cnn, "near", split) for cnn in ("standard", "robust") for split in (None, "successful")}
    frozen = {
        (row["attack"], row["metric"]): row["value"]
        for row in table
        if (row["model"], row["threat"], row["cnn"], row["pair"]) == ("vbpr", "frozen", "standard", "near")
    }
    assert metrics["chr_origin_attacked"] == frozen["pgd_8", "chr_origin"]
    assert metrics["chr_origin_noise"] == frozen["noise_8", "chr_origin"]
    assert metrics["chr_origin_swap"] == frozen["swap", "chr_origin"]
    # A budget stands only where there is one.
    assert {row["attack"]: row["eps"] for row in table if row["metric"] == "attack_success"}["swap"] is None
    assert metrics["mean_rank_shift"] == frozen["pgd_8", "rank_shift"]
    assert metrics["mean_item_lift"] == frozen["pgd_8", "item_lift"]


def test_each_network_is_attacked_itself_for_the_same_classes(whole):
    folder, _, ran = whole
    trainings = {place for name, place in ran if name == "train_cnn"}
    base = "runs/multimedia_recsys/train_cnn/tiny"
    assert trainings == {base, f"{base}/robust"}
    assert (folder / "train_cnn/tiny/robust/model.keras").read_text() == "pgd"
    classes = set()
    for cnn in ("standard", "robust"):
        ending = "" if cnn == "standard" else "/robust"
        if ending:
            learnt = read_results(folder / "rec_generator/tiny/robust")["config"]
            assert learnt["features"].endswith("classify_extract/tiny/robust")
        for attack in ATTACKS:
            config = read_results(folder / f"classify_extract_attack/tiny/{cnn}/near_{attack}")["config"]
            for name, script in (
                ("model", "train_cnn"),
                ("features", "classify_extract"),
                ("recommendations", "rec_generator"),
            ):
                assert config[name].endswith(f"{script}/tiny{ending}")
            classes.add((config["origin_class"], config["target_class"]))
            assert config["recommender"] == (attack.split("_")[2] if attack.startswith("insa") else "vbpr")
    assert len(classes) == 1


@pytest.mark.parametrize("retrain", ["none", "headline", "first", "all"])
def test_recommenders_are_trained_anew_where_it_was_asked_for(whole, tmp_path, retrain):
    place = whole[0] / "run_all/tiny"
    if retrain != "headline":
        joined(whole[0].parent.parent, retrain=retrain, name="tiny", out=tmp_path / "run")
        place = tmp_path / "run"
    table = read_table(place)
    found = {
        (row["cnn"], row["attack"]) for row in table if (row["threat"], row["metric"]) == ("retrained", "chr_lift")
    }
    assert (
        found
        == {
            "none": set(),
            "headline": {("standard", attack) for attack in RETRAINED},
            "first": {("standard", attack) for attack in ATTACKS},
            "all": {(cnn, attack) for cnn in ("standard", "robust") for attack in ATTACKS},
        }[retrain]
    )


def test_nothing_that_is_finished_runs_again(whole, tmp_path):
    folder, results, _ = whole
    again, ran = joined(folder.parent.parent, name="tiny", out=tmp_path / "again")
    assert ran == []
    assert again["metrics"] == results["metrics"]


def test_networks_of_one_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--cnns: expected one or more networks of different names"):
        run_all.run_all(run_all.run_all.options(**SHOP, cnns=("a/net.keras", "b/net.keras")))
