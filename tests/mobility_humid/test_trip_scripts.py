"""What the scripts make of their parts, without a training and with stand-ins for the attacks; and what they refuse."""

import keras
import numpy as np
import pytest

from common.errors import UserError
from common.evaluation.robustness import Entry, Examples, Outcome, union
from common.runs.record import read_table
from common.training import checkpoints
from common.training.fit import BestEpoch
from mobility_humid.attacks.trips import ATTACKS
from mobility_humid.classification import classification
from mobility_humid.classification_attack import classification_attack
from mobility_humid.data.trips import X, Y
from mobility_humid.fast_adversarial_train import fast_adversarial_train
from mobility_humid.models.networks import Classifier
from mobility_humid.siamese_attack import siamese_attack
from mobility_humid.train import FittingOptions, network_arguments, train
from mobility_humid.training.tasks import CLASSIFICATION, SIAMESE
from mobility_humid.training.verification import fix_threshold, watch
from tests.helpers.trip_toys import SMALLEST, answers, verifier_file

RUNS = "runs/mobility_humid"
UNTRAINED = {"units": (8, 8, 4), "encoder": "places"}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to run scripts in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shifted(model, x, y, *, name, layout, grid, eta, **options):
    """Stands for every attack, and needs no model: trips go to a corner of the map, whole or (L0) their last point,
    under noise to the other one."""
    far = x.copy()
    for feature, size in ((X, grid[0]), (Y, grid[1])):
        way = eta if name == "noise" else -eta
        far[..., feature] = np.clip(x[..., feature] + way, 0, size - 1)
    mask = layout.movable(x) > 0
    mask[:, :, : -1 if name == "st_ifgsm_l0" else 0] = False
    return np.where(mask, far, x)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr("mobility_humid.attacks.trips.trip_attack", shifted)
    # A network that is not trained, of which three epochs are told.
    told = [{"loss": 1.0, "accuracy": 0.5, "validation_accuracy": 0.5, "validation_auc": 0.5}] * 3

    def fit(recipe, journal, build, *arguments, **settings):
        return build(), told

    monkeypatch.setattr("mobility_humid.training.fit.fit_trips", fit)


def of_part(table, part, metric):
    return [row for row in table if (row["split"], row["metric"]) == (part, metric)]


def test_b13_rates_are_those_of_a_count_by_hand(workplace, stand_ins, monkeypatch, tiny_fleet, tiny_file):
    """B13: among pairs that were right, for every attack, part and direction; and the table has the same figures."""
    fleet = tiny_fleet(n_test=60)
    path = verifier_file(workplace / "mine.keras", fleet)
    shared = SMALLEST | {"n_test": 60, "dataset": str(tiny_file)}
    attacks = {"attack": ("st_ifgsm_l0",), "curve": (1,), "n_slow": 25}
    monkeypatch.setattr("mobility_humid.evaluation.outcomes._FITTED_PAIRS", 60)
    results = siamese_attack(siamese_attack.options(**shared, **attacks, model=path))
    metrics, table = results["metrics"], read_table(workplace / RUNS / "siamese_attack/tiny")
    assert set(results["artifacts"]) == {"trips", "map", "success_eta", "success_points"}
    cells = {
        (row["attack"], row["eps"], row["split"], row["metric"]): (row["value"], row["n"])
        for row in table
        if row["metric"] in ("attacked_accuracy", "success_rate_impersonation", "success_rate_dodging")
    }
    names = {("st_ifgsm_linf", 1), ("st_ifgsm_linf", 2), ("noise", 1), ("noise", 2), ("st_ifgsm_l0", 2), ("all", 2)}
    assert {key[:2] for key in cells} == names
    model = checkpoints.load_model(path)
    for part in ("seen", "unseen"):
        pairs = fleet.pairs(part, 60)
        x, y = fleet.samples(pairs), pairs.same
        right = answers(model, x) == y
        assert metrics[f"clean_accuracy_{part}"] == pytest.approx(right.mean()) and metrics[f"auc_{part}"] > 0
        wrong = {}
        for name, eta in names - {("all", 2)}:
            moved = shifted(model, x, y, name=name, layout=fleet.layout, grid=fleet.trips.grid.size, eta=eta)
            n = 25 if name == "st_ifgsm_l0" else 60
            fooled = wrong[name, eta] = (right & (answers(model, moved) != y))[:n]
            whole = (right[:n] & ~fooled).mean()
            assert cells[name, eta, part, "attacked_accuracy"] == (pytest.approx(whole), n)
            for direction, of in (("impersonation", 0), ("dodging", 1)):
                among = (right & (y == of))[:n]
                rate, count = cells[name, eta, part, f"success_rate_{direction}"]
                assert (rate, count) == (pytest.approx(fooled[among].mean()), among.sum())
                if (name, eta) == ("st_ifgsm_linf", 2):
                    assert metrics[f"success_rate_{direction}_{part}"] == rate
                    assert metrics[f"success_rate_{direction}_{part}_n"] == count
        # Somebody is fooled, not everybody, and not the same ones by every attack.
        assert 0 < wrong["st_ifgsm_linf", 2].sum() < right.sum()
        worst = np.any([fooled[:25] for (_, eta), fooled in wrong.items() if eta == 2], axis=0)
        assert cells["all", 2, part, "attacked_accuracy"] == (pytest.approx((right[:25] & ~worst).mean()), 25)
        # Beside what all of them leave, each attack on the samples that all met.
        common = {row["attack"]: (row["value"], row["n"]) for row in of_part(table, part, "attacked_accuracy_common")}
        for name in ("st_ifgsm_linf", "st_ifgsm_l0", "noise"):
            left = right[:25] & ~wrong[name, 2][:25]
            assert (
                common[name] == (pytest.approx(left.mean()), 25)
                and common[name][0] >= cells["all", 2, part, "attacked_accuracy"][0]
            )
        # What no attack can change: an answer that is always the same, and a rule that reads the trips which stay.
        bounds = {row["model"]: (row["value"], row["n"]) for row in of_part(table, part, "accuracy")}
        assert bounds["constant"] == (pytest.approx(max(y.mean(), 1 - y.mean())), 60)
        assert 0 < bounds["served_trips"][0] < 1 and bounds["served_trips"][1] == 60
        for metric, name in (("attacked_accuracy", "st_ifgsm_linf"), ("noise_accuracy", "noise")):
            assert metrics[f"{metric}_{part}"] == cells[name, 2, part, "attacked_accuracy"][0]
    assert metrics["displacement_cells_max"] == 2


def test_a_classifier_is_attacked_by_name(workplace, stand_ins, tiny_fleet, tiny_file):
    """One part, one direction; the budgets of L2 and L1 are what ST-iFGSM took in that norm."""
    shared = {"dataset": str(tiny_file), "num_plates": 4, **SMALLEST}
    fleet = tiny_fleet(sides=1, num_plates=4, unseen_share=0.0)
    arguments = network_arguments(FittingOptions(**UNTRAINED), fleet)
    model = Classifier(classes=4, **arguments)
    checkpoints.save_model(model, workplace / "names.keras")
    results = classification_attack(
        classification_attack.options(
            **shared, attack=("st_fgsm_l2", "st_fgsm_l1"), curve=(), model=workplace / "names.keras"
        )
    )
    samples = CLASSIFICATION.samples(fleet, "test", 24)
    where = {"layout": fleet.layout, "grid": fleet.trips.grid.size}
    moved = shifted(model, samples.x, samples.y, name="st_fgsm_l2", eta=2, **where)
    right = answers(model, samples.x) == samples.y
    fooled = right & (answers(model, moved) != samples.y)
    assert results["metrics"]["clean_accuracy"] == pytest.approx(right.mean())
    assert results["metrics"]["attacked_accuracy"] == pytest.approx((right & ~fooled).mean())
    assert "noise_accuracy" in results["metrics"]
    table = read_table(workplace / RUNS / "classification_attack/tiny")
    # One attack a threat model: there is nothing to unite.
    assert {row["attack"] for row in table} == {"st_ifgsm_linf", "st_fgsm_l2", "st_fgsm_l1", "noise", None}
    assert fooled.any()
    for order in (1, 2):
        norms = np.linalg.norm((moved - samples.x)[fooled].reshape(fooled.sum(), -1), ord=order, axis=1)
        (radius,) = {row["eps"] for row in table if row["attack"] == f"st_fgsm_l{order}"}
        assert radius == pytest.approx(norms.mean())
    counts = np.bincount(samples.y)
    bounds = {row["model"]: row["value"] for row in of_part(table, "test", "accuracy")}
    assert bounds["constant"] == pytest.approx(counts.max() / counts.sum()) and 0 < bounds["served_trips"] < 1


@pytest.mark.parametrize("head", ["concat", "symmetric"])
def test_a_verifier_is_judged_beside_the_baselines(workplace, stand_ins, monkeypatch, tiny_file, head):
    monkeypatch.setattr("mobility_humid.train._BASELINE_PAIRS", 60)
    results = train(train.options(dataset=str(tiny_file), **SMALLEST, **UNTRAINED, head=head))
    metrics = results["metrics"]
    wanted = {
        f"{of}{metric}_{part}"
        for of in ("", "heat_map_", "whole_day_")
        for metric in ("accuracy", "f1", "auc")
        for part in ("seen", "unseen")
    }
    assert wanted | {f"{name}_n" for name in wanted} <= set(metrics)
    table = read_table(workplace / RUNS / "train/tiny")
    assert {(row["model"], row["split"]) for row in table} == {
        (model, part) for model in ("network", "heat_map", "whole_day") for part in ("seen", "unseen")
    }
    model = checkpoints.load_model(workplace / RUNS / "train/tiny/model.keras")
    assert model.head == head and model.threshold.numpy() != 0
    assert {"model", "training"} == set(results["artifacts"])


def test_a_classifier_is_judged_beside_the_baselines(workplace, stand_ins, monkeypatch, tiny_file):
    monkeypatch.setattr("mobility_humid.classification._BASELINE_SAMPLES", 10)
    results = classification(classification.options(dataset=str(tiny_file), num_plates=4, **SMALLEST, **UNTRAINED))
    assert {"accuracy", "heat_map_accuracy", "whole_day_accuracy", "worst_driver"} <= set(results["metrics"])
    assert results["metrics"]["chance"] == 0.25 and {"model", "training"} == set(results["artifacts"])
    table = read_table(workplace / RUNS / "classification/tiny")
    assert {row["model"]: row["metric"] for row in table} == dict.fromkeys(
        ("network", "heat_map", "whole_day"), "accuracy"
    )


def test_a_model_is_attacked_before_and_after_it_is_hardened(workplace, stand_ins, monkeypatch, tiny_fleet, tiny_file):
    """Two stand-ins for a training, of which one calls all drivers the same and the other none."""
    path = verifier_file(workplace / "mine.keras", tiny_fleet())
    written = path.read_bytes()

    def hardened(options, run, fleet, task, path, method, stand_in):
        model = checkpoints.load_model(path)
        model.head_layers[-1].bias.assign([1000.0 if method == "fast" else -1000.0])
        return model

    monkeypatch.setattr("mobility_humid.fast_adversarial_train._hardened", hardened)
    results = fast_adversarial_train(
        fast_adversarial_train.options(dataset=str(tiny_file), **SMALLEST, model=path, n_slow=8)
    )
    metrics, table = results["metrics"], read_table(workplace / RUNS / "fast_adversarial_train/tiny")
    model, fleet = checkpoints.load_model(path), tiny_fleet()
    parts = [SIAMESE.samples(fleet, part, 24) for part in ("seen", "unseen")]
    same = np.concatenate([samples.y for samples in parts])
    right = np.concatenate([answers(model, samples.x) == samples.y for samples in parts])
    assert metrics["clean_accuracy_before"] == pytest.approx(right.mean())
    assert metrics["clean_accuracy_after"] == metrics["attacked_accuracy_after"] == pytest.approx(same.mean())
    assert metrics["clean_accuracy_after_n"] == metrics["attacked_accuracy_before_n"] == 48
    assert metrics["strong_accuracy_before_n"] == 16 and metrics["clean_accuracy_before_seen_n"] == 24
    by_model = {
        (row["model"], row["split"]): row["value"]
        for row in table
        if (row["attack"], row["metric"]) == ("transfer", "attacked_accuracy")
    }
    for samples, part in zip(parts, ("seen", "unseen"), strict=True):
        # Whoever is called the same, or another, is so wherever the trips were moved.
        assert by_model["fast", part] == pytest.approx(samples.y.mean())
        assert by_model["pgd", part] == pytest.approx(1 - samples.y.mean())
    gain = {(row["model"], row["attack"]): row["value"] for row in table if row["metric"] == "attacked_accuracy_gain"}
    assert {model for model, _ in gain} == {"fast", "pgd"} and {attack for _, attack in gain} == {
        "st_ifgsm_linf",
        "strong",
        "noise",
    }
    assert gain["fast", "st_ifgsm_linf"] == pytest.approx(same.mean() - metrics["attacked_accuracy_before"])
    assert results["artifacts"].keys() == {"defence"} and path.read_bytes() == written
    with pytest.raises(UserError, match="--methods: 'slow' is none of fast, pgd, none"):
        fast_adversarial_train(fast_adversarial_train.options(dataset=str(tiny_file), methods=("slow",), name="other"))


def test_the_epoch_of_least_loss_is_kept_and_outlives_an_interruption(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    def weights(value):
        model.set_weights([np.full((2, 1), value), np.full(1, value)])

    def begun():
        callback = BestEpoch(True, tmp_path, "validation_loss")
        callback.set_model(model)
        callback.on_train_begin()
        return callback

    first = begun()
    for epoch, (value, loss) in enumerate([(1.0, 0.7), (2.0, 0.4), (3.0, 0.5)]):
        weights(value)
        first.on_epoch_end(epoch, {"validation_loss": loss})
    # Another process goes on, and finds nothing better.
    weights(4.0)
    second = begun()
    second.on_epoch_end(3, {"validation_loss": 0.6})
    second.on_train_end()
    assert all((weight == 2.0).all() for weight in model.get_weights())


def test_a_threshold_is_fixed_where_pairs_are_most_often_right(workplace, tiny_fleet):
    fleet = tiny_fleet()
    model = checkpoints.load_model(verifier_file(workplace / "mine.keras", fleet))
    pairs = fleet.pairs("validation", 60)
    x = fleet.samples(pairs)
    z = np.asarray(model(x, training=False))[:, 0]
    # Twice the same: what was taken off before is taken into account.
    for _ in range(2):
        fix_threshold(model, x, pairs.same)
        right = [np.mean((z >= cut) == pairs.same) for cut in np.sort(z)]
        found = watch(model, x, pairs.same)
        assert found["validation_accuracy"] == pytest.approx(max(right))
        likelihood = np.where(pairs.same == 1, 1, -1) * (z - model.threshold.numpy())
        assert found["validation_loss"] == pytest.approx(np.log1p(np.exp(-likelihood)).mean(), rel=1e-4)


def test_networks_that_cannot_be_are_refused(tiny_fleet):
    for options, message in (
        ({"units": (8, 4)}, "--units: expected three numbers, for LSTM, LSTM and dense layer; got 2"),
        ({"dropout": 1.0}, "--dropout: must be below 1; got 1"),
        ({"place_spacing": 0.0}, "--place-spacing: must be above 0; got 0"),
    ):
        with pytest.raises(UserError, match=message):
            network_arguments(FittingOptions(**options), tiny_fleet())


def test_b14_the_union_goes_sample_by_sample():
    """Over the samples that all met; each is shown as the first attack that fools it left it."""
    samples = Examples(np.zeros((4, 2, 3, 3), np.float32), np.zeros(4, np.int32), np.arange(4))
    robust = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]], bool)
    clean = np.array([1, 1, 1, 0], bool)
    outcomes = [
        Outcome(Entry(name="any"), samples.first(n), np.full((n, 2, 3, 3), mark, np.float32), clean[:n], held[:n])
        for mark, held, n in zip((1, 2, 3), robust, (4, 3, 4), strict=True)
    ]
    left = union(outcomes)
    assert left.robust.tolist() == [False, False, False] and left.clean.tolist() == [True, True, True]
    assert left.x[:, 0, 0, 0].tolist() == [3, 2, 1] and len(left.examples.y) == 3
    in_radius = [ATTACKS[name].in_radius for name in ("st_fgsm_l2", "st_ifgsm_l1", "cw_l2", "st_ifgsm_l0", "noise")]
    assert in_radius == [1, 1, 0, 0, 0]


def test_models_that_do_not_fit_are_refused_in_one_line(workplace, tiny_fleet, tiny_file):
    """D4: another layout, no model, probabilities, other outputs, other samples; and before anything is trained."""
    shared = {"dataset": str(tiny_file), **SMALLEST}
    fleet = tiny_fleet()

    def refused(message, script=siamese_attack, **options):
        with pytest.raises(UserError, match=message) as refusal:
            script(script.options(**shared | options, force=True))
        assert "\n" not in str(refusal.value)

    other = verifier_file(workplace / "other.keras", tiny_fleet(padding_length=9))
    refused("other.keras: was trained on samples with length 9, these have 12; sample as its training did", model=other)
    three = verifier_file(workplace / "speed.keras", tiny_fleet(with_speed=True))
    refused("speed.keras: was trained on samples with features 4, these have 3", model=three)
    (workplace / "text.keras").write_text("not a model")
    refused("text.keras: not a model that can be loaded safely", model=workplace / "text.keras")
    refused("none.keras", model=workplace / "none.keras")
    shapes = {
        "probability": (fleet.layout.shape, 1, "sigmoid", None),
        "many": (fleet.layout.shape, 5, None, r"many.keras: answers with \(5,\); expected 1 or 2 logits a sample"),
        "narrow": ((4, 4, 3), 1, None, r"narrow.keras: does not take samples of \(8, 12, 3\)"),
    }
    for name, (shape, outputs, activation, message) in shapes.items():
        layers = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(outputs, activation=activation)]
        checkpoints.save_model(keras.Sequential(layers), workplace / f"{name}.keras")
        if message:
            refused(message, model=workplace / f"{name}.keras")
    hidden = keras.Sequential(
        [keras.Input(fleet.layout.shape), keras.layers.Flatten(), keras.layers.Dense(2), Certain()]
    )
    checkpoints.save_model(hidden, workplace / "hidden.keras")
    refused("hidden.keras: .*probabilities", model=workplace / "hidden.keras")
    refused("--attack: 'fgsm' is none of st_fgsm_linf, ", attack=("fgsm",))
    refused("--traj-type serve: .* an attack needs seek trips", traj_type="serve")
    # None of these has begun to train.
    assert not (workplace / "runs/mobility_humid/train").exists()


@keras.saving.register_keras_serializable("tests")
class Certain(keras.layers.Layer):
    """A softmax that no one sees."""

    def call(self, x):
        return keras.ops.softmax(x)
