"""What can be refused is refused before anything is read, made, trained, downloaded or written, in every script."""

import importlib
import shutil
import zipfile
from pathlib import Path

import keras
import pytest

from common.errors import UserError
from common.runs.script import Script
from common.training import checkpoints

ROOT = Path(__file__).resolve().parents[3]


def script_in(path):
    """The entry script that a file defines."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, Script) and value.body.__module__ == module.__name__
    )
    return found


SCRIPTS = {
    path.relative_to(ROOT).as_posix(): script_in(path)
    for path in sorted([*ROOT.glob("*/*.py"), *ROOT.glob("*/*/__main__.py")])
    if "\n@script(" in path.read_text("utf-8")
}
PATHS = [
    (name, field)
    for name, script in SCRIPTS.items()
    for field, hint in script.parser.hints.items()
    if "Path" in str(hint) and field != "config" and not script.fields[field].metadata.get("written")
]


@pytest.fixture
def nothing_happens(tmp_path, monkeypatch):
    """An empty folder to work in; the body of any script fails the test, and so do training and downloads."""

    def forbidden(*arguments, **options):
        pytest.fail("something was begun before the refusal")

    monkeypatch.chdir(tmp_path)
    for place in ("common.runs.script.Script._begin", "common.training.loop.train", "common.datasets.downloads.fetch"):
        monkeypatch.setattr(place, forbidden)
    yield tmp_path
    assert not list(tmp_path.glob("runs/**/*")) and not (tmp_path / "data").exists()


def refused(script, options, message):
    with pytest.raises(UserError, match=message) as refusal:
        script(script.options(**options))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


def test_every_script_was_found():
    assert len(SCRIPTS) > 30 and {"others", "clips", "attack_pairs", "reference", "key"} <= {
        field for _, field in PATHS
    }


@pytest.mark.parametrize(("name", "field"), PATHS)
def test_a_path_that_is_not_there(nothing_happens, name, field):
    script = SCRIPTS[name]
    missing = ("nowhere.keras",) if "tuple" in str(script.parser.hints[field]) else "nowhere.keras"
    refused(script, {field: missing}, rf"--{field.replace('_', '-')}: nowhere\.keras: no such file or folder")
    # Over several seeds too, whose folder is begun before those of the single ones.
    if "seeds" in script.fields:
        refused(script, {field: missing, "seeds": (0, 1)}, "no such file or folder")


def two_outputs(path):
    images = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(images)
    return keras.Model(images, [keras.layers.Dense(n, name=f"head{n}")(pooled) for n in (2, 3)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of the right name that are not what they should be."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "text.keras").write_text("a model")
    with zipfile.ZipFile(folder / "zip.npz", "w"):
        pass
    (folder / "empty").mkdir()
    checkpoints.save_model(two_outputs(folder), folder / "two.keras")
    (folder / "binary.txt").write_bytes(b"caf\0\n")
    return folder


TEXT, TWO = r"text\.keras: not a model that can be loaded", r"two\.keras: has 2 outputs \(head2 \(2,\), head3 \(3,\)\)"
MODELS = [
    *(
        ("adv_lock/lock.py", "model"),
        ("attention_defense/attack.py", "model"),
        ("attention_defense/attack.py", "source"),
    ),
    *(("attention_defense/analyse.py", "model"), ("attention_defense/explain.py", "model")),
    *(("multimedia_recsys/classify_extract.py", "model"), ("multimedia_recsys/classify_extract_attack.py", "model")),
    *(("mobility_humid/siamese_attack.py", "model"), ("mobility_humid/classification_attack.py", "model")),
    *(("mobility_humid/fast_adversarial_train.py", "model"), ("mobility_humid/identify.py", "model")),
    ("face_mter/ad_face.py", "pretrained"),
    *(("face_mter/verify.py", "model"), ("face_mter/attack.py", "model"), ("face_mter/attack.py", "base_model")),
    *(("common/evaluation/__main__.py", "model"), ("common/evaluation/__main__.py", "source")),
    *(("benchmarks/parity.py", "model"), ("benchmarks/attacks.py", "mnist_model")),
]


@pytest.mark.parametrize(("name", "field"), MODELS)
def test_a_model_that_is_none_or_has_two_answers(nothing_happens, files, name, field):
    refused(SCRIPTS[name], {field: files / "text.keras"}, TEXT)
    refused(SCRIPTS[name], {field: files / "two.keras"}, TWO)


def test_the_models_tried_are_all_that_scripts_take():
    """Those that the list lacks are checked by the table below."""
    named = {(name, field) for name, field in PATHS if "model" in field or field in ("pretrained", "source")}
    of_benchmarks = {("benchmarks/attacks.py", "cifar_model"), ("benchmarks/attacks.py", "robust_model")}
    assert named - {*MODELS} == of_benchmarks | {("benchmarks/autoattack.py", "models")}


OPTIONS = [
    ("benchmarks/autoattack.py", {"linf": (0.1,)}, "--linf: has 1 budgets for 2 models"),
    ("benchmarks/autoattack.py", {"models": ("two.keras",), "linf": (0.1,), "l2": (0.1,)}, "two.keras: has 2 outputs"),
    ("common/evaluation/__main__.py", {}, "--model: give a classifier"),
    ("common/evaluation/__main__.py", {"model": "two.keras", "eps": 8}, "did you mean 8/255"),
    ("common/evaluation/__main__.py", {"model": "two.keras", "eps": 0}, "--eps: must be above 0"),
    ("benchmarks/defences.py", {"defences": ("none",)}, "--defences: unknown 'none'"),
    ("adv_lock/train_base.py", {"arch": "none"}, "network 'none': unknown"),
    ("adv_lock/train_base.py", {"momentum": 1.0}, "--momentum: must be below 1"),
    ("adv_lock/lock.py", {"eps": 0}, "--eps: must be above 0"),
    ("adv_lock/lock.py", {"attack_store": "text.keras"}, "--attack-store: .*text.keras is a file"),
    (
        "adv_lock/lock.py",
        {"input_scale": 255},
        "--input-scale, --input-offset: are for a model that this suite did not",
    ),
    ("adv_lock/lock.py", {"model": "two.keras", "input_scale": 0}, "--input-scale: must be above 0"),
    ("adv_lock/train.py", {"arch": "none"}, "network 'none': unknown"),
    ("adv_lock/audit.py", {"arch": "none"}, "network 'none': unknown"),
    ("adv_lock/train.py", {"reference": "empty"}, "empty/results.json: no such file"),
    ("adv_lock/train.py", {"lock_data": "empty", "dataset": "mnist"}, "--dataset: the locked images come with"),
    ("adv_lock/unlock.py", {"key": "zip.npz"}, "zip.npz"),
    ("adv_lock/run_all.py", {"more_seeds": (0,)}, "--more-seeds: 0 is --seed already"),
    ("attention_defense/train.py", {"arch": "none"}, "network 'none': unknown"),
    ("attention_defense/attack.py", {"curve": (0.001,)}, "less than one grey level"),
    ("attention_defense/attack.py", {"class_list": "binary.txt"}, "binary.txt: is not text"),
    ("attention_defense/attack.py", {"boxes": "empty"}, "--boxes: are for an image folder; scenes is not one"),
    ("attention_defense/attack.py", {"model": "resnet50", "dataset": "mnist"}, "resnet50: has 1000 classes"),
    ("attention_defense/run_all.py", {"methods": ("aad",), "pgd_eps": (0.1,)}, "--pgd-eps: belongs to pgd"),
    ("face_mter/train.py", {"arch": "none"}, "--network: 'none' is unknown"),
    ("face_mter/train.py", {"evaluation_share": 1.5}, "evaluation_share=1.5: expected a share"),
    ("face_mter/ad_face.py", {"loss_type": "softmax"}, "--loss-type, --margin-s: are for a new head"),
    ("face_mter/ad_face.py", {"embedding": "dense"}, "--embedding: is for a network that this suite did not train"),
    ("face_mter/ad_mnist.py", {"arch": "none"}, "--network: 'none' is unknown"),
    ("face_mter/attack.py", {"pairs": "nowhere.txt"}, "--pairs: nowhere.txt: no such file"),
    ("face_mter/attack.py", {"others": ("text.keras", "text.keras")}, "--others: two models called 'text'"),
    ("face_mter/verify.py", {"pairs": "nowhere.txt"}, "--pairs: nowhere.txt: no such file"),
    ("face_mter/verify.py", {"clips": "empty"}, "empty: holds no folders of people"),
    ("face_mter/verify.py", {"evaluate_only": True}, "--evaluate-only: .* name it by --model"),
    ("mobility_humid/prepare.py", {"day_start": 24}, "--day-start: expected an hour"),
    ("mobility_humid/train.py", {"units": (1, 2)}, "--units: expected three numbers"),
    ("mobility_humid/classification.py", {"dropout": 1.0}, "--dropout: must be below 1"),
    ("face_mter/verify.py", {"far": 2.0}, "far=2.0: expected a share between 0 and 1"),
    ("face_mter/attack.py", {"far": 0.0}, "far=0.0: expected a share between 0 and 1"),
    ("face_mter/ad_mnist.py", {"far": 1.0}, "far=1.0: expected a share between 0 and 1"),
    ("mobility_humid/siamese_attack.py", {"attack": ("fgsm",)}, "--attack: 'fgsm' is none of"),
    ("mobility_humid/siamese_attack.py", {"traj_type": "serve"}, "--traj-type serve: .* an attack needs seek trips"),
    ("mobility_humid/fast_adversarial_train.py", {"methods": ("none", "trades")}, "--methods: 'trades' is none of"),
    ("mobility_humid/identify.py", {"pairs": "binary.txt"}, "binary.txt: no column 'first'"),
    ("mobility_humid/identify.py", {"columns": "driver"}, "--columns: expected field=column pairs"),
    ("multimedia_recsys/train_cnn.py", {"arch": "none"}, "network 'none': unknown"),
    ("multimedia_recsys/rec_generator.py", {"features": "empty"}, "empty/classes.csv: no such file"),
    ("multimedia_recsys/results_analyzer.py", {"attacked": "empty"}, "empty/results.json: no such file"),
    ("multimedia_recsys/results_analyzer.py", {"recommendations": "empty"}, "empty/top_vbpr.npz: no such file"),
    ("multimedia_recsys/results_analyzer.py", {"top_k": 500}, "lists of 100 items; CHR@500 needs 500"),
    ("multimedia_recsys/classify_extract_attack.py", {"origin_class": "sock"}, "give both or neither"),
    ("multimedia_recsys/classify_extract_attack.py", {"analysis": "empty"}, "empty/results.json: no such file"),
    ("multimedia_recsys/evaluate_visual_images.py", {"attacked": "empty"}, "empty/results.json: no such file"),
    ("multimedia_recsys/run_all.py", {"cnns": ("standard", "nowhere.keras")}, "--cnns: nowhere.keras: no such file"),
    ("multimedia_recsys/run_all.py", {"cnns": ("standard", "text.keras")}, TEXT),
    ("multimedia_recsys/run_all.py", {"top_k": 500}, "lists of 100 items; CHR@500 needs 500"),
    ("benchmarks/attention.py", {"archs": ("small_cnn", "none")}, "network 'none': unknown"),
    ("benchmarks/adversarial_training.py", {"arch": "none"}, "network 'none': unknown"),
]


@pytest.mark.parametrize(("name", "options", "message"), OPTIONS)
def test_options_with_which_it_cannot_end_well(nothing_happens, files, name, options, message):
    for path in files.iterdir():
        (nothing_happens / path.name).symlink_to(path)
    refused(SCRIPTS[name], options, message)


CHAINS = [
    ("face_mter/attack.py", "ad_face: {pretrained: nowhere.keras}", "--pretrained: nowhere.keras: no such file"),
    ("face_mter/verify.py", "train: {arch: none}", "--network: 'none' is unknown"),
    ("adv_lock/train.py", "lock: {eps: 0}", "--eps: must be above 0"),
    ("adv_lock/unlock.py", "train_base: {arch: none}", "network 'none': unknown"),
    ("adv_lock/run_all.py", "lock: {attack_lr: 0}", "--attack-lr: must be above 0"),
    ("attention_defense/explain.py", "train: {alpha: 0}", "--alpha: must be above 0"),
    ("attention_defense/run_all.py", "attack: {eps: 0.001}", "less than one grey level"),
    ("multimedia_recsys/results_analyzer.py", "train_cnn: {arch: none}", "network 'none': unknown"),
    ("multimedia_recsys/run_all.py", "classify_extract_attack: {origin_class: sock}", "give both or neither"),
    ("mobility_humid/siamese_attack.py", "prepare: {day_start: 24}", "--day-start: expected an hour"),
    ("benchmarks/compare_training.py", "adversarial_training: {arch: none}", "network 'none': unknown"),
]


@pytest.mark.parametrize(("name", "config", "message"), CHAINS)
def test_what_a_script_before_it_would_refuse(nothing_happens, name, config, message):
    """Else the first scripts of a chain would run for minutes before the one that refuses."""
    Path("chain.yaml").write_text(config)
    script = SCRIPTS[name]
    refused(script, {"config": "chain.yaml"} | script.parser.read(Path("chain.yaml"), script._sections), message)


@pytest.mark.parametrize(
    ("script", "earlier", "message"),
    [
        ("adv_lock/lock.py", "adv_lock/train_base/demo", "is a file; choose another --out"),
        ("adv_lock/train.py", "adv_lock/lock/demo", "is a file; choose another --out"),
        ("mobility_humid/siamese_attack.py", "mobility_humid/train/demo", "is a file; choose another --out"),
        ("adv_lock/lock.py", "adv_lock/train_base/demo/notes.txt", "holds notes.txt but no config.yaml of a run"),
    ],
)
def test_a_folder_that_a_run_before_it_could_not_use(nothing_happens, script, earlier, message):
    """Else what comes before that run would be trained first."""
    blocked = Path("runs", earlier)
    blocked.parent.mkdir(parents=True)
    blocked.write_text("mine")
    refused(SCRIPTS[script], {}, message)
    assert [path for path in Path("runs").rglob("*") if path.is_file()] == [blocked]
    shutil.rmtree("runs")
