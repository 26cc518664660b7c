"""Figures are files that are there and show what they were given."""

import numpy as np
from PIL import Image

from common.evaluation import plots


def drawn(path, colour):
    """Share of the image in `colour`, a hex string."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((abs(pixels - wanted).max(axis=-1) < 12).mean())


def test_curves_and_levels_are_drawn(tmp_path):
    path = tmp_path / "new" / "curves.png"
    plots.accuracy_curves({"a": [0.1, 0.9], "b": [0.5, 0.5]}, path, title="t", n={}, levels={"level": 0.7})
    assert all(drawn(path, colour) > 1e-4 for colour in (*plots.COLOURS[:2], plots.COLOURS[-1]))
    assert drawn(path, plots.COLOURS[4]) == 0
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]


def test_bars_are_as_tall_as_their_values(tmp_path):
    plots.grouped_bars(("x", "y"), {"low": [0.2, 0.2], "high": [0.8, 0.8]}, tmp_path / "bars.png", title="t")
    ratio = drawn(tmp_path / "bars.png", plots.COLOURS[1]) / drawn(tmp_path / "bars.png", plots.COLOURS[0])
    assert 3.0 < ratio < 5.0


def test_images_keep_their_colours_and_may_differ_in_size(tmp_path):
    red = np.full((8, 8, 3), (200, 16, 32), np.uint8)
    grey = np.full((40, 20, 1), 0.5)
    plots.image_rows({"one": [red, red], "two": [grey]}, tmp_path / "rows.png")
    assert drawn(tmp_path / "rows.png", "#C81020") > 0.1
