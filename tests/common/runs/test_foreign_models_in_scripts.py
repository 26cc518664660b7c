"""A classifier that others trained on 0..255, in every script that attacks one: recognised, and right at its scale."""

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from adv_lock.lock import lock
from attention_defense.attack import attack
from attention_defense.explain import explain
from common.errors import UserError
from common.runs.record import read_table
from common.training import checkpoints
from multimedia_recsys.classify_extract import classify_extract
from multimedia_recsys.run_all import run_all

SIZE = 16


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Images, dark and bright, as arrays and as a shop, and a network that tells them apart in 0..255."""
    monkeypatch.chdir(tmp_path)
    images = keras.Input((SIZE, SIZE, 3))
    dense, conv = layers.Dense(2), layers.Conv2D(1, 3, padding="same", name="mean")
    x = layers.GlobalAveragePooling2D()(conv(layers.Rescaling(1 / 255)(images)))
    model = keras.Model(images, layers.Softmax()(dense(x)))
    kernel = np.zeros((3, 3, 3, 1), np.float32)
    kernel[1, 1] = 1 / 3
    conv.set_weights([kernel, np.zeros(1, np.float32)])
    dense.set_weights([np.array([[-20.0, 20.0]], np.float32), np.array([10.0, -10.0], np.float32)])
    checkpoints.save_model(model, tmp_path / "foreign.keras")
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 40), ("test", 40)):
        y = np.arange(count) % 2
        x = rng.integers(70, 101, (count, SIZE, SIZE, 3)) + 75 * y[:, None, None, None]
        arrays |= {f"x_{part}": x.astype(np.uint8), f"y_{part}": y}
    np.savez(tmp_path / "shades.npz", **arrays)
    for row, (image, label) in enumerate(zip(arrays["x_test"], arrays["y_test"], strict=True)):
        folder = tmp_path / "shop" / ("dark", "light")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row:02d}.png")
    bought = [f"u{user},{(user + 3 * k) % 40:02d}.png" for user in range(20) for k in range(4)]
    (tmp_path / "who.csv").write_text("user,item\n" + "\n".join(bought) + "\n")
    return tmp_path


SHOP = {"dataset": "shop", "interactions": "who.csv", "image_size": SIZE}
SCRIPTS = {
    "attack": (attack, {"dataset": "shades.npz", "attack": ("fgsm", "noise"), "curve": (1.0,), "n_slow": 40}),
    "source": (attack, {"dataset": "shades.npz", "source": "foreign.keras"}),
    "explain": (explain, {"dataset": "shades.npz", "n_test": 40}),
    "lock": (lock, {"dataset": "shades.npz", "steps": 2}),
    "lock of a folder": (lock, {"dataset": "shop", "steps": 2}),
    "shop": (classify_extract, SHOP),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_recognised_before_anything_is_attacked_or_trained(foreign, name):
    script, options = SCRIPTS[name]
    given = options if "source" in options else {**options, "model": "foreign.keras"}
    with pytest.raises(UserError, match=r"foreign\.keras: is right on 50% of .* give --input-scale 255$"):
        script(script.options(**given))
    assert not [path for path in foreign.glob("runs/**/*") if path.is_file() and path.name != ".lock"]


def test_a_reading_that_no_model_is_there_for_is_refused(foreign):
    for script, options in ((attack, {}), (lock, {}), (classify_extract, {}), (run_all, {"cnns": ("standard",)})):
        with pytest.raises(UserError, match="--input-scale, --input-offset: are for a model that this suite did not"):
            script(script.options(**options, input_scale=255))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("source", "explain")])
def test_with_its_scale_it_is_right(foreign, name):
    script, options = SCRIPTS[name]
    results = script(script.options(**options, model="foreign.keras", input_scale=255))
    clean = {"attack": "clean_accuracy", "shop": "agreement"}.get(name, "base_accuracy")
    assert results["metrics"][clean] == 1
    if name == "attack":
        robust = {
            row["attack"]: row["value"]
            for row in read_table(foreign / "runs/attention_defense/attack/shades")
            if row["metric"] == "accuracy" and row["split"] == "curve"
        }
        # Without bound nothing stands.
        assert robust["pgd20"] == 0
