"""What the scripts on faces make of their parts, without a training and with stand-ins for the attacks; and what they
refuse."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from common.datasets.images import write_png
from common.errors import UserError
from common.evaluation.robustness import Entry, Examples, Outcome
from common.runs.record import Identity, Run, read_table
from common.training import checkpoints
from face_mter import ad_face, attack, train, verify
from face_mter.data.faces import FaceSplits, load_pairs, split_people
from face_mter.evaluation import people
from face_mter.evaluation.lfw import ten_fold
from face_mter.evaluation.people import verify as judge
from face_mter.evaluation.verification import accept_rates, all_scores, cosines, far_threshold, pair_scores
from face_mter.training import fit, mter
from face_mter.verify import VerificationOptions, folded_pairs
from tests.helpers.face_toys import drawn_faces, faces_of, linear_network

PEOPLE = {"image_size": 16, "n_train": 6, "seed": 0}
MODELS = ("base", "hardened", "none")


def few_faces(patch, folder):
    """Scripts run in `folder`, on few faces."""
    patch.chdir(folder)
    patch.setattr("face_mter.data.faces.load_faces", lambda *_, image_size, **__: drawn_faces(size=image_size))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    few_faces(monkeypatch, tmp_path)
    return tmp_path


def pixels(model, images):
    """Embeddings that need no network."""
    return images.reshape(len(images), -1).astype(np.float32) - 128


@pytest.fixture(scope="module")
def splits():
    return FaceSplits(drawn_faces(), split_people(drawn_faces(), seed=0, n_train=6))


def test_a_model_is_judged_on_strangers(splits):
    """Threshold from the calibration half, rates on the attack half, ten-fold accuracy on pairs of both."""
    pairs = folded_pairs(VerificationOptions(n_folded=6), splits)
    e = pixels(None, splits.faces.images)
    found = judge(e, splits, pairs, 0.01)
    assert len(pairs.same) == 120 and not set(splits.faces.person[pairs.pairs].ravel()) & set(splits.people.train)
    halves = [
        all_scores(e[rows], splits.faces.person[rows])
        for rows in map(splits.rows, (splits.people.calibration, splits.people.attack))
    ]
    assert found.threshold == far_threshold(halves[0].impostor, 0.01)
    assert found.rates == accept_rates(halves[1], found.threshold) and set(found.tars) == {"1e-2"}
    tested = ten_fold(pair_scores(e, pairs.pairs), pairs.same, pairs.fold)
    assert found.accuracy.value == tested.accuracy > 0.5 and found.accuracy.n == 120
    # Whoever trained is not looked at.
    blind = e.copy()
    blind[splits.rows(splits.people.train)] = 1.0
    assert judge(blind, splits, pairs, 0.01).threshold == found.threshold


def test_pairs_of_a_file_are_those_of_strangers(tmp_path):
    """By their rows among all faces; who trained is left out."""
    faces = faces_of([5] * 20)
    splits = FaceSplits(faces, split_people(faces, seed=0, n_train=10))
    first, second = splits.held_out[[1, 4]]
    trained = splits.people.train[0]
    lines = [f"{faces.names[person]}\t1\t2" for person in (first, trained)]
    lines += [f"{faces.names[a]}\t1\t{faces.names[b]}\t3" for a, b in ((first, second), (first, trained))]
    (tmp_path / "pairs.txt").write_text("\n".join(["1\t2", *lines]))
    found = folded_pairs(VerificationOptions(pairs=str(tmp_path / "pairs.txt")), splits)
    assert found.pairs.tolist() == [[5 * first, 5 * first + 1], [5 * first, 5 * second + 2]]
    assert found.same.tolist() == [1, 0] and found.left_out == 2 and found.pairs.dtype == np.int32


class Nearer:
    """Stands for an attacker: each 1/255 brings a cosine nearer by so much, each attack by a share of its own."""

    def __init__(self, step):
        self.step, self.asked = step, []
        self.model, self.embed = object(), object()

    def evaluation(self, sources, targets, *, aims=None, identity=None):
        return Brought(self, Examples(sources, targets if aims is None else aims, identity), targets)

    def entry(self, name, eps):
        return Entry(name=name, eps=eps)


class Brought:
    """Stands for an evaluation by cosines, of which quantisation takes a little back."""

    def __init__(self, attacker, examples, targets):
        self.attacker, self.examples, self.outcomes = attacker, examples, []
        self.before = cosines(pixels(None, examples.x), targets)

    def run(self, entry):
        self.attacker.asked.append((entry.name, round(entry.eps * 255), self.examples.y))
        way = -1 if entry.name == "dodge" else 1 + len(entry.name) / 10
        found = np.minimum(self.before + way * self.attacker.step * entry.eps * 255, 1)
        return self.remember(entry, found, found - 0.004)

    def unattacked(self):
        return self.remember(Entry(name="clean"), self.before, self.before)

    def show(self, entry, x):
        return self.remember(entry, self.before, self.before)

    def remember(self, entry, found, after):
        x = self.examples.x / np.float32(255)
        self.outcomes.append(Outcome(entry, self.examples, x, self.before, after, found))
        return self.outcomes[-1]


def attacked(folder, **options):
    """The results of attack.py on stand-ins for three models, run in `folder`, and the stand-ins."""
    subjects = []

    def stand_ins(options, run, splits, folded):
        e = pixels(None, splits.faces.images)
        found = judge(e, splits, folded, options.far)
        subjects.extend(attack.Subject(name, Nearer(0.01 / (k + 1)), e, found) for k, name in enumerate(MODELS))
        return subjects

    smallest = {"far": 0.01, "n_folded": 6, "n_test": 30, "curve": (2 / 255, 10 / 255)}
    with pytest.MonkeyPatch.context() as patch:
        few_faces(patch, folder)
        patch.setattr(attack, "_subjects", stand_ins)
        return attack.attack(attack.Options(**PEOPLE | smallest | options)), subjects


@pytest.fixture(scope="module")
def attack_run(tmp_path_factory):
    """The folder in which attack.py ran, its results, and the stand-ins for the models."""
    folder = tmp_path_factory.mktemp("attacked")
    return folder, *attacked(folder)


def test_attack_writes_what_the_issue_names(attack_run, splits):
    workplace, results, subjects = attack_run
    keys = {
        f"hit_rate_{name}" for name in ("fftgsm_10", "iftgsm_5", "iftgsm_10", "itgsm_10", "pgd_10", "noise_10", "clean")
    }
    keys |= {"threshold", "verification_accuracy"}
    assert {key + ending for key in keys for ending in ("", "_base")} <= set(results["metrics"])
    assert {"faces", "hit_rate", "pairs", "pairs_itgsm"} <= set(results["artifacts"])
    folder = workplace / "runs/face_mter/attack/demo"
    table = read_table(folder)
    assert {row["model"] for row in table} == set(MODELS)
    metrics = {row["metric"] for row in table}
    assert {"hit_rate", "hit_rate_float", "hit_rate_base_threshold", "hit_rate_equal_tar", "mean_cosine"} <= metrics
    assert {"verification_accuracy_less_base", "hit_rate_less_base", "hit_rate_less_hardened"} <= metrics
    assert {("iftgsm", "base"), ("pgd", "hardened")} <= {(row["attack"], row["source"]) for row in table}

    # By hand: what a stand-in says comes nearer than the threshold, before and after rounding.
    pairs = load_pairs(folder / "pairs.csv", splits.faces)
    e = pixels(None, splits.faces.images)
    clean = cosines(e[pairs[:, 0]], e[pairs[:, 1]])
    own = [row for row in table if row["attack"] and row["source"] is None]
    values = {(row["model"], row["attack"], row["eps"], row["metric"]): row["value"] for row in own}
    for subject in subjects:
        threshold = subject.verified.threshold
        for name, eps in (("fftgsm", 10), ("iftgsm", 2), ("iftgsm", 5), ("pgd", 10)):
            moved = np.minimum(clean + subject.attacker.step * eps * (1 + len(name) / 10), 1)
            key = subject.name, name, eps / 255
            assert values[*key, "hit_rate"] == pytest.approx((moved - 0.004 >= threshold).mean())
            assert values[*key, "hit_rate_float"] == pytest.approx((moved >= threshold).mean())
        # Every budget of the curve and the headline, each once; victims of itgsm by their place among who trained.
        named = [("fftgsm", 10), ("itgsm", 10), ("noise", 10), ("pgd", 10), ("dodge", 10)]
        asked = sorted(asked[:2] for asked in subject.attacker.asked)
        assert asked == sorted(named + [("iftgsm", eps) for eps in (2, 5, 10)])
        (classes,) = (asked[2] for asked in subject.attacker.asked if asked[0] == "itgsm")
        victims = load_pairs(folder / "pairs_itgsm.csv", splits.faces)[:, 1]
        np.testing.assert_array_equal(splits.people.train[classes], splits.faces.person[victims])
    base, hardened = (values[name, "pgd", 10 / 255, "hit_rate"] for name in MODELS[:2])
    assert values["hardened", "pgd", 10 / 255, "hit_rate_less_base"] == pytest.approx(hardened - base) != 0
    assert results["metrics"]["hit_rate_pgd_10_base"] == base and results["metrics"]["hit_rate_pgd_10"] == hardened


def test_the_base_model_is_judged_the_same_at_all_three_thresholds(attack_run):
    table = read_table(attack_run[0] / "runs/face_mter/attack/demo")
    at = {
        metric: [
            (row["attack"], row["eps"], row["value"])
            for row in table
            if row["model"] == "base" and row["metric"] == metric and row["source"] is None
        ]
        for metric in ("hit_rate", "hit_rate_base_threshold")
    }
    assert at["hit_rate"] == at["hit_rate_base_threshold"] and len(at["hit_rate"]) >= 8


def test_lists_are_of_different_people_who_did_not_train(attack_run, splits):
    faces, run = splits.faces, attack_run[0] / "runs/face_mter/attack/demo"
    pairs, labelled = (load_pairs(run / f"{name}.csv", faces) for name in ("pairs", "pairs_itgsm"))
    assert (faces.person[pairs[:, 0]] != faces.person[pairs[:, 1]]).all() and len(pairs) == len(labelled) == 30
    trained = set(faces.person[labelled[:, 1]])
    assert len(trained) <= 6 and not trained & set(faces.person[pairs].reshape(-1))


def test_a_list_can_be_used_again_and_must_fit(attack_run, tmp_path):
    run = attack_run[0] / "runs/face_mter/attack/demo"
    attacked(tmp_path, n_test=10, name="again", attack_pairs=run / "pairs.csv")
    first = (run / "pairs.csv").read_text().splitlines()[:11]
    assert (tmp_path / "runs/face_mter/attack/again/pairs.csv").read_text().splitlines() == first
    with pytest.raises(UserError, match="is not in the attack half"):
        attacked(tmp_path, name="wrong", attack_pairs=run / "pairs_itgsm.csv")


def test_verify_of_images_and_clips(workplace, monkeypatch, tmp_path_factory):
    clips = tmp_path_factory.mktemp("clips")
    for row in range(20 * 24):
        person, image = divmod(row, 20)
        clip = clips / f"person_{person:04d}" / f"clip{image // 5}"
        clip.mkdir(parents=True, exist_ok=True)
        write_png(clip / f"{image}.png", drawn_faces(24, 20).images[row])
    checkpoints.save_model(linear_network((16, 16, 3), 6), workplace / "any.keras")
    monkeypatch.setattr(verify, "load_checked", lambda *_, **__: SimpleNamespace(input_shape=(None, 16, 16, 3)))
    monkeypatch.setattr(people, "embed_all", pixels)
    options = verify.Options(**PEOPLE, far=0.01, n_folded=6, clips=clips, model=workplace / "any.keras")
    results = verify.verify_model(options)
    metrics = results["metrics"]
    assert {"verification_accuracy", "tar_at_far_1e-2", "threshold", "clip_accuracy", "mean_cosine"} <= set(metrics)
    assert metrics["clip_accuracy_n"] == 120 and metrics["verification_accuracy_n"] == 120
    # Means of five images say more than single ones.
    assert metrics["clip_accuracy"] > metrics["verification_accuracy"] > 0.5
    assert (workplace / "runs/face_mter/verify/demo" / results["artifacts"]["roc"]).exists()


def told(recipe, journal, faces, make, evaluate, **more):
    """Stands for a training: the network as it was built, and what is measured of it."""
    model = make()
    return model, [{"accuracy": 0.5, **evaluate(model)}]


def test_models_of_other_people_or_images_are_refused(workplace, monkeypatch):
    monkeypatch.setattr(fit, "fit_faces", told)
    train.train(train.Options(**PEOPLE, emb_size=8))
    own = workplace / "runs/face_mter/train/demo/model.keras"
    with pytest.raises(UserError, match="demo: has learnt 1 of the 35 people who are held out here"):
        ad_face.ad_face(ad_face.Options(**PEOPLE | {"n_train": 5}, pretrained=own, name="five"))
    # Of a file elsewhere nobody knows how it was trained.
    model = shutil.copy(own, workplace / "elsewhere.keras")
    with pytest.raises(UserError, match="takes images of 16 x 16 x 3, these are 32 x 32 x 3"):
        verify.verify_model(verify.Options(**PEOPLE | {"image_size": 32}, n_folded=6, model=model, name="large"))


def test_a_model_is_tuned_by_the_head_that_it_has(workplace, monkeypatch):
    """Dense logits need no margin; what is watched are strangers, told apart and attacked."""
    monkeypatch.setattr(fit, "fit_faces", told)
    train.train(train.Options(**PEOPLE, emb_size=8, loss_type="softmax", name="dense"))
    asked = {}
    monkeypatch.setattr(mter, "method", lambda name, **settings: asked.update(settings, name=name))
    options = ad_face.Options(**PEOPLE, pretrained="runs/face_mter/train/dense", method="adv", steps=3)
    results = ad_face.ad_face(options)
    assert (asked["name"], asked["loss_type"], asked["weight"]) == ("adv", "softmax", options.weightadv)
    metrics = results["metrics"]
    assert (
        metrics["accuracy"] == 0.5 and 0 < metrics["calibration_auc"] < 1 and 0 <= metrics["calibration_hit_rate"] <= 1
    )
    assert set(results["artifacts"]) == {"model", "training"}


@pytest.mark.parametrize("paired", [False, True])
def test_one_step_on_all_who_train(workplace, splits, paired):
    options = train.Options(**PEOPLE, epochs=1, batch_size=64, learning_rate=0.01, augment="none")
    run = Run(workplace, Identity("face_mter", "train", ""), {"seed": 0})
    way = mter.method("none", loss_type="softmax") if paired else mter.classification("softmax", scale=1.0, margin=0.0)
    network = linear_network((16, 16, 3), 6)
    before = network.get_weights()
    model, history = fit.fit_faces(
        options.recipe,
        run,
        splits.faces.of(splits.people.train),
        lambda: network,
        lambda model: {"seen": 1.0},
        method=way,
        paired=paired,
        title="a step",
        seed=0,
        augment=options.augment,
    )
    assert model is network and len(history) == 1 and history[0]["seen"] == 1.0
    assert all((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))
    # 36 images, or pairs of a quarter of them: one batch, whatever was asked for.
    assert (workplace / "metrics.csv").read_text().count("\n") == 2
