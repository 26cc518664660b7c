"""Run every entry script once with its smallest settings, the scripts of an app in one process and an empty folder.

    python .ci/smallest.py                   all apps, each in a process of its own
    python .ci/smallest.py adv_lock          one app, in this process and folder

That each `--help` works is a test (`tests/common/test_scripts.py`).
"""

import contextlib
import io
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--n-train", "100", "--n-test", "50"]
FIT = [*TINY, "--epochs", "1", "--batch-size", "32"]
SMALLEST = {
    "adv_lock/train_base.py": FIT,
    "adv_lock/lock.py": [*TINY, "--steps", "2"],
    "adv_lock/train.py": FIT,
    "adv_lock/unlock.py": TINY,
    "adv_lock/audit.py": FIT,
    "benchmarks/adversarial_training.py": [*FIT, "--steps", "2", "--n-watch", "10", "--n-slow", "10"],
    "benchmarks/compare_training.py": [
        "--config",
        str(ROOT / ".ci/smallest_benchmarks.yaml"),
        "--methods",
        "standard,fast",
    ],
    "benchmarks/parity.py": ["--n-train", "100", "--n-test", "8", "--epochs", "1", "--steps", "2"],
    "benchmarks/attacks.py": [
        *("--rows", "fgsm_scenes,scenes_linf,ddn_scenes", "--repeats", "1"),
        *("--n-test", "8", "--n-train", "200", "--epochs", "1"),
    ],
    "benchmarks/autoattack.py": [
        *("--n-train", "100", "--n-test", "4", "--epochs", "1", "--repeats", "1"),
        *("--norms", "linf", "--contenders", "fast"),
    ],
    "benchmarks/defences.py": [
        *("--n-train", "200", "--n-test", "8", "--epochs", "1", "--n-planted", "0", "--width", "4"),
        *("--defences", "softmax_on_top", "--eps", "8/255"),
    ],
    "benchmarks/optimality.py": [
        *("--n-train", "100", "--n-test", "6", "--epochs", "1", "--arch", "tiny_cnn", "--steps", "20"),
        *("--methods", "standard", "--norms", "l2", "--attacks", "ddn,fmn"),
    ],
    "benchmarks/training.py": [
        *("--archs", "small_cnn", "--batches", "2", "--batch-size", "32"),
        *("--repeats", "1", "--steps", "1"),
    ],
    "benchmarks/mobility.py": [
        *("--batch-size", "4", "--steps", "1", "--train-steps", "1", "--repeats", "1"),
        *("--per-kind", "1", "--padding-length", "8", "--units", "8,8,4"),
    ],
    "benchmarks/recsys.py": [
        *("--n-users", "60", "--n-items", "40", "--features", "16", "--epochs", "2", "--repeats", "1"),
        *("--timed-epochs", "1", "--large-users", "50", "--large-items", "200"),
    ],
    "benchmarks/refill.py": ["--config", str(ROOT / ".ci/smallest_refill.yaml")],
    "benchmarks/attention.py": ["--archs", "small_cnn", "--batch-size", "4", "--repeats", "2"],
    "adv_lock/run_all.py": ["--config", str(ROOT / ".ci/smallest.yaml"), "--methods", "basic"],
}
# Of processor time: the README commands run at the same time.
MOST_SECONDS = 60
TRIPS = str(ROOT / ".ci/smallest_trips.yaml")
SMALLEST |= {
    f"mobility_humid/{name}.py": ["--config", TRIPS]
    for name in (
        *("prepare", "train", "siamese_attack", "fast_adversarial_train"),
        *("classification", "classification_attack", "certify", "identify"),
    )
}
FACES = str(ROOT / ".ci/smallest_faces.yaml")
SMALLEST |= {
    f"face_mter/{name}.py": ["--config", FACES] for name in ("train", "ad_face", "attack", "verify", "ad_mnist")
}
SHOP = str(ROOT / ".ci/smallest_shop.yaml")
SMALLEST |= {
    f"multimedia_recsys/{name}.py": ["--config", SHOP]
    for name in (
        *("train_cnn", "classify_extract", "rec_generator", "results_analyzer"),
        *("classify_extract_attack", "evaluate_visual_images", "run_all"),
    )
}
ATTENTION = str(ROOT / ".ci/smallest_attention.yaml")
SMALLEST |= {
    f"attention_defense/{name}.py": ["--config", ATTENTION]
    for name in ("train", "attack", "analyse", "explain", "run_all")
}
# Of a model that was trained there.
SMALLEST["common/evaluation/__main__.py"] = [
    *("--model", "runs/attention_defense/train/smallest_attention", "--n-test", "50", "--n-planted", "2"),
    *("--eps", "32/255"),
]


def main(apps: list[str]) -> None:
    files = (*ROOT.glob("*/*.py"), *ROOT.glob("*/*/__main__.py"))
    entries = {path.relative_to(ROOT).as_posix() for path in files if "\n@script(" in path.read_text("utf-8")}
    if entries != set(SMALLEST):
        sys.exit(f".ci/smallest.py: differs from the entry scripts there are: {sorted(entries ^ set(SMALLEST))}")
    for app in apps:
        run_all_of(app)
    if not apps:
        for app in dict.fromkeys(map(app_of, SMALLEST)):
            with tempfile.TemporaryDirectory() as folder:
                subprocess.run([sys.executable, __file__, app], cwd=folder, check=True)


def app_of(script: str) -> str:
    """The app in whose folder a script is run: that whose model it takes."""
    return script.partition("/")[0].replace("common", "attention_defense")


def run_all_of(app: str) -> None:
    """The scripts of one app, as their command lines would run them."""
    sys.path.insert(0, str(ROOT))
    for script, options in SMALLEST.items():
        if app_of(script) != app:
            continue
        started, worked, said = time.monotonic(), time.process_time(), io.StringIO()
        sys.argv, status = [script, *options], None
        with contextlib.redirect_stdout(said):
            try:
                # As `python <app>/<script>.py` does, the lines at its end included.
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as end:
                status = end.code
        seconds = time.process_time() - worked
        took = f"{time.monotonic() - started:.1f} s, {seconds:.1f} s of processor time"
        print(f"{script} {' '.join(options)}: {took}", flush=True)
        if status != 0:
            sys.exit(f"{script}: status {status}\n{said.getvalue()[-3000:]}")
        if seconds > MOST_SECONDS:
            sys.exit(f"{script}: took more than {MOST_SECONDS} s of processor time with its smallest settings")


if __name__ == "__main__":
    main(sys.argv[1:])
