"""run_all.py: which trainings and attacks it asks for, and how it joins what these leave; they are stubs here."""

import pytest

from attention_defense import attack, run_all, train
from common.runs.record import read_results, read_table

CONFIG = """
train: {n_train: 400}
attack: {n_test: 30, curve: "2/255,1.0"}
run_all: {methods: "aad,standard", few_methods: "aad_two_step,pgd", n_few: 100, pgd_eps: 4/255}
"""
# Clean accuracy, and what all attacks leave, by method, and by the further radius of PGD.
LEFT = {"standard": (0.9, 0.0), "aad": (0.7, 0.3), "aad_two_step": (0.6, 0.2), "pgd": (0.5, 0.4), "pgd 4": (0.8, 0.1)}
WHOLE = {("standard", None, None), ("aad", None, None)}
FEW = {("aad_two_step", None, "100"), ("pgd", None, "100"), ("pgd", "4/255", "100")}


def trainings(table, **columns):
    """Method, radius and number of images of the rows with such `columns`."""
    rows = [row for row in table if all(row[name] == value for name, value in columns.items())]
    return {(row["model"], row["train_eps"], row["n_train"]) for row in rows}


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A folder in which run_all.py joined stubs, its results, what ran, in order, and what ran the second time."""
    folder = tmp_path_factory.mktemp("attention")
    ran = []

    def trained(options, run):
        ran.append(("train", run.folder.as_posix()))
        run.data("scenes", "d" * 64)
        further = " 4" if options.eps == 4 / 255 else ""
        clean, left = LEFT[options.method + further]
        (run.folder / "model.keras").write_text(f"{clean} {left}")
        run.rate("clean_accuracy", clean, 60, model=options.method, split="test")
        run.metrics(clean_accuracy=clean, clean_accuracy_n=60, gradient_norm_preservation=0.5)

    def attacked(options, run):
        ran.append(("attack", run.folder.as_posix()))
        run.data("scenes", "d" * 64)
        clean, left = map(float, options.model.read_text().split())
        run.rate("clean_accuracy", clean, 30, model="stub", split="attacked")
        for kind, value in (("pgd20", left + 0.05), ("all", left)):
            run.rate("accuracy", value, 30, model="stub", attack=kind, eps=8 / 255, split="test")
        for eps, value in ((0.0, clean), *((eps, left) for eps in options.curve)):
            run.rate("accuracy", value, 20, model="stub", attack="pgd20", eps=eps, split="curve")
        if options.source is not None:
            assert options.source.read_text() == "0.9 0.0"
            run.rate("accuracy", 0.5, 30, model="stub", attack="transfer", eps=8 / 255, split="test")
        run.metrics(accuracy_pgd20=left + 0.05, accuracy_pgd20_n=30)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(train.train, "body", trained)
        patch.setattr(attack.attack, "body", attacked)
        (folder / "tiny.yaml").write_text(CONFIG)
        results = run_all.run_all(run_all.run_all.parse(["--config", "tiny.yaml"]))
        first = list(ran)
        run_all.run_all(run_all.run_all.parse(["--config", "tiny.yaml", "--out", "again"]))
    return folder / "runs/attention_defense", results, first, ran[len(first) :]


def test_the_standard_one_comes_first_and_each_is_attacked_after_its_training(joined):
    _, _, first, second = joined
    places = ("standard", "aad", "few/pgd", "few/aad_two_step", "few/pgd_4")
    assert {place for _, place in first} == {
        f"runs/attention_defense/{script}/tiny/{place}" for script in ("train", "attack") for place in places
    }
    assert [script for script, _ in first] == ["train", "attack"] * 5
    assert first[0][1].endswith("train/tiny/standard")
    assert not second


def test_run_all_joins_its_parts(joined):
    folder, results, *_ = joined
    table = read_table(folder / "run_all/tiny")
    assert trainings(table) == WHOLE | FEW
    for method in ("standard", "aad"):
        own = read_results(folder / f"attack/tiny/{method}")["metrics"]
        assert results["metrics"][f"{method}_accuracy_pgd20"] == own["accuracy_pgd20"]
        clean = [row for row in table if row["model"] == method and row["metric"] == "clean_accuracy"]
        assert {row["split"] for row in clean} == {"test", "attacked"}
    # Those on few images are in the table alone.
    assert {name.split("_accuracy")[0] for name in results["metrics"]} == {"standard", "aad", "minutes"}
    # What fools the standard one is shown to all others.
    assert trainings(table, attack="transfer") == {("aad", None, None)} | FEW
    assert trainings(table, metric="minutes") == WHOLE | FEW
    assert results["data_sha256"] == "d" * 64 and (folder / "run_all/tiny/curves.png").stat().st_size > 5000


def test_ways_on_few_images_have_their_number_and_radius(joined):
    folder, *_ = joined
    assert read_results(folder / "train/tiny/aad")["config"]["n_train"] == 400
    for place, eps in (("few/aad_two_step", 8 / 255), ("few/pgd", 8 / 255), ("few/pgd_4", 4 / 255)):
        config = read_results(folder / "train/tiny" / place)["config"]
        assert config["n_train"] == 100 and config["eps"] == pytest.approx(eps)


def test_what_has_too_little_beside_it_is_not_compared(joined):
    """Plain and PGD training with another radius: in no group are there three of them."""
    folder, *_ = joined
    assert not [row for row in read_table(folder / "run_all/tiny") if row["metric"] == "pgd_at_equal_clean"]
