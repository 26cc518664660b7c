"""Figures are files that are there and show what they were given."""

import numpy as np
from PIL import Image

from common.evaluation import plots
from common.evaluation.statistics import independent


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


def text_of(path):
    with Image.open(path) as image:
        image.load()
        return image.text["Title"], image.text["Description"]


def test_a_figure_says_n_and_what_its_intervals_are(tmp_path):
    bars = {"clean": [independent(0.9, 50)], "attacked": [independent(0.25, 50)]}
    plots.grouped_bars(["fast"], bars, tmp_path / "one.png", title="robust accuracy")
    assert text_of(tmp_path / "one.png") == (
        "robust accuracy (n = 50; lines: 95 % intervals)",
        "clean: fast 90.0 %; attacked: fast 25.0 %",
    )
    bars["attacked"] = [independent(0.25, 20)]
    plots.grouped_bars(["fast"], bars, tmp_path / "two.png", title="robust accuracy")
    title, description = text_of(tmp_path / "two.png")
    assert title == "robust accuracy (lines: 95 % intervals)"
    assert description == "clean (n = 50): fast 90.0 %; attacked (n = 20): fast 25.0 %"


def test_examples_that_share_identities_have_n_and_no_wilson_interval(tmp_path):
    curves, n = {"accuracy": [0.5, 0.75]}, {"accuracy": 40}
    plots.accuracy_curves(curves, tmp_path / "a.png", title="t", n=n)
    plots.accuracy_curves(curves, tmp_path / "b.png", title="t", n=n, dependent=True)
    assert text_of(tmp_path / "a.png")[0] == "t (n = 40; bands: 95 % intervals)"
    assert text_of(tmp_path / "b.png")[0] == "t (n = 40)"


def test_figures_are_as_wide_as_a_phone_shows_text_of_ten_points(tmp_path):
    """360 pixels for `WIDTH` inches: ten points are ten pixels."""
    image = np.full((8, 8, 3), 90, np.uint8)
    many = {f"kind {i}": [0.1 * i] * 6 for i in range(6)}
    plots.grouped_bars([f"a long name of group {i}" for i in range(6)], many, tmp_path / "a.png", title="t" * 90)
    plots.image_rows(
        {"clean": [image] * 12}, tmp_path / "b.png", title="a title of many words " * 5, columns=["x"] * 12
    )
    plots.accuracy_curves({f"curve {i}": [0.1, 0.9] for i in range(9)}, tmp_path / "c.png", title="t", n={})
    for name in "abc":
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert drawn.width / drawn.info["dpi"][0] < 1.25 * plots.WIDTH
