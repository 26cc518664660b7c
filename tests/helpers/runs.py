"""A folder of runs in every state that there is."""

import json

import numpy as np

from common.evaluation import plots
from common.evaluation.statistics import independent
from common.runs.folder import execute
from common.runs.record import Identity

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def finished(root, app="adv_lock", script="train", name="quick", rows=3, label="basic", config=None, seed=0):
    """A finished run of `rows` measurements with one figure of bars and one of images; its folder."""

    def body(run):
        run.data(f"scenes {label}", "0" * 64)
        run.headline("original_accuracy", 0.5, 200, attack=label, eps=0.5, norm="l2", split="test")
        for row in range(rows - 1):
            run.row(metric="psnr", attack=label, value=30.0 - row)
        bars = {"clean": [independent(0.9, 200)], "attacked": [independent(0.25, 200)]}
        run.figure("bars", plots.grouped_bars, ["fast"], bars, title=f"robust accuracy {label}")
        run.figure("images", plots.image_rows, {"clean": [np.full((8, 8, 3), 90, np.uint8)] * 3}, title="images")

    folder = root / app / script / name
    config = {"eps": 0.5, "seed": seed, "name": name} | (config or {})
    execute(folder, Identity(app, script, f"python {app}/{script}.py"), config, body)
    return folder


def judged(root):
    """A finished run of a verdict; its folder."""
    rate = {"value": 0.2, "low": 0.16, "high": 0.24, "n": 500}
    checks = [
        {
            "name": "B1",
            "asks": f"is it {HOSTILE}?",
            "passed": passed,
            "value": value,
            "wanted": "below 1",
            "note": HOSTILE,
        }
        for passed, value in ((True, 0.5), (False, 2.0), (None, None))
    ]
    card = {
        **{"eps": 8 / 255, "norm": "linf", "eight_bit": True, "clean": rate, "robust": rate, "false_positives": None},
        **{"tried": [{"name": "one step", "accuracy": rate}], "mechanism": "random", "layers": [HOSTILE]},
        **{"climbed": ["as it is"], "checks": checks},
    }

    def body(run):
        run.headline("robust_accuracy", 0.2, 500, attack="union", eps=8 / 255, norm="linf", split="test")
        path = run.folder / "card.json"
        path.write_text(json.dumps(card), encoding="utf-8")
        run.artifact("card", path)

    folder = root / "common/evaluation/judged"
    execute(
        folder, Identity("common", "evaluation", "python -m common.evaluation"), {"name": "judged", "seed": 0}, body
    )
    return folder


def every_state(root):
    """Runs below `root`: finished, with hostile labels, of many rows, a verdict, unfinished, damaged in four ways."""
    finished(root)
    finished(root, name="hostile", label=HOSTILE)
    finished(root, app="face_mter", script="attack", rows=500)
    finished(root, app="suite", script="demo")
    judged(root)
    unfinished = root / "adv_lock/lock/quick"
    unfinished.mkdir(parents=True)
    (unfinished / "config.yaml").write_text(
        "# adv_lock/lock: the options of this run, as --config takes them\neps: 1\n"
    )
    (unfinished / "log.txt").write_text("2026-01-01 00:00:00 begun\n2026-01-01 00:00:09 image 5 of 9\n")
    (finished(root, name="cut_results") / "results.json").write_text('{"app": "adv_lock", "metr')
    (finished(root, name="cut_table") / "table.csv").write_text("seed,metric,value\n0,accuracy,\n")
    (finished(root, name="no_figure") / "bars.png").unlink()
    secret = root / "secret.png"
    secret.write_bytes((finished(root, name="elsewhere") / "bars.png").read_bytes())
    results = root / "adv_lock/train/elsewhere/results.json"
    changed = json.loads(results.read_text())
    changed["artifacts"]["bars"] = "../../../secret.png"
    results.write_text(json.dumps(changed))
    return root
