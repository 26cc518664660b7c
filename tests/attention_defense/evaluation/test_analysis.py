"""Measures of attention against brute force and closed forms."""

import numpy as np
import pytest

from attention_defense.data.images import relabelled
from attention_defense.data.voc_boxes import masks_from, read_boxes
from attention_defense.evaluation import analysis
from attention_defense.evaluation.lime_maps import lime_map
from attention_defense.models.networks import NETWORKS
from common.errors import UserError


def test_the_object_is_compared_with_as_many_pixels_as_it_has():
    attention = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 3, 1:] = mask[0, 0, 0] = True
    # The four most attended pixels are the last row; three of them belong to the object's four.
    assert analysis.object_overlap(attention, mask)[0] == pytest.approx(3 / 5)
    assert np.isnan(analysis.object_overlap(attention, np.zeros((1, 4, 4), bool))[0])
    assert analysis.object_overlap(attention, np.ones((1, 4, 4), bool))[0] == 1


def test_trust_margin_and_entropy():
    logits = np.array([[0.0, np.log(3.0), -50.0]])
    assert analysis.confidence(logits)[0] == pytest.approx(0.75)
    assert analysis.margin(logits, np.array([0]))[0] == pytest.approx(-np.log(3))
    assert analysis.margin(logits, np.array([1]))[0] == pytest.approx(np.log(3))
    assert analysis.entropy(np.ones((1, 4, 4)))[0] == pytest.approx(1)
    single = np.zeros((1, 4, 4))
    single[0, 1, 2] = 1
    assert analysis.entropy(single)[0] == pytest.approx(0, abs=1e-6)


def test_intervals_cover_and_shrink():
    rng = np.random.default_rng(0)
    small, large = (analysis.mean(rng.normal(1, 1, n), np.ones(n, bool)) for n in (50, 5000))
    for found in (small, large):
        assert found.low < found.value < found.high
        assert found.low < 1 < found.high
    assert large.high - large.low < (small.high - small.low) / 5
    assert analysis.mean(np.array([np.nan]), np.array([True])) is None


def test_differences_are_of_means_and_none_without_a_side():
    values, side = np.array([1.0, 2.0, 5.0, np.nan]), np.array([True, True, False, False])
    assert analysis.difference(values, side, ~side).value == pytest.approx(-3.5)
    assert analysis.difference(values, side, np.zeros(4, bool)) is None


def test_logistic_regression_finds_the_cause_and_only_it(monkeypatch):
    monkeypatch.setattr(analysis, "_REFITS", 200)
    rng = np.random.default_rng(1)
    cause, other = rng.normal(size=(2, 800))
    success = rng.random(800) < 1 / (1 + np.exp(-(0.3 - 1.5 * cause)))
    found = analysis.odds(success, {"cause": cause, "other": other})
    assert found["cause"].low < -1.5 < found["cause"].high < -0.8
    assert found["other"].low < 0 < found["other"].high
    assert analysis.odds(np.ones(800, bool), {"cause": cause}) == {}


def test_lime_names_the_superpixels_that_matter_and_repeats_itself():
    image = np.full((16, 16, 3), 0.5, np.float32)
    image[4:8, 4:8] = (1, 0, 0)
    image[10:14, 10:14] = (0, 0, 1)

    def answer(batch):
        red = np.clip(batch[:, 4:8, 4:8, 0] - batch[:, 4:8, 4:8, 2], 0, 1).mean(axis=(1, 2))
        return np.stack([red, 1 - red], axis=1)

    found = [lime_map(answer, image, 0, segments=16, features=1, samples=200, seed=3) for _ in range(2)]
    assert np.array_equal(*found)
    assert found[0][5, 5] and found[0][4:8, 4:8].mean() > 0.7
    assert not found[0][10:14, 10:14].any()


def test_looks_are_the_same_in_any_batch():
    model = NETWORKS["cifarnet"]((16, 16, 1), 3, width=8, seed=1)
    x = np.random.default_rng(0).integers(256, size=(7, 16, 16, 1), dtype=np.uint8)
    y = np.arange(7, dtype=np.int32) % 3
    for one, other in zip(
        analysis.compute_attention(model, x, y, batch_size=7),
        analysis.compute_attention(model, x, y, batch_size=2),
        strict=True,
    ):
        assert np.allclose(one, other, atol=1e-3)


VOC = """<annotation><size><width>{width}</width><height>100</height></size>
<object><bndbox><xmin>50</xmin><ymin>0</ymin><xmax>100</xmax><ymax>50</ymax></bndbox></object>
<object><bndbox><xmin>0</xmin><ymin>75</ymin><xmax>50</xmax><ymax>100</ymax></bndbox></object></annotation>"""


def test_boxes_become_masks(tmp_path):
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "a.xml").write_text(VOC.format(width=200))
    masks = masks_from(tmp_path, [tmp_path / "images/n01/a.JPEG", tmp_path / "images/n01/b.JPEG"], (8, 8))
    expected = np.zeros((8, 8), bool)
    expected[:4, 2:4] = expected[6:, :2] = True
    assert np.array_equal(masks[0], expected)
    assert not masks[1].any()
    with pytest.raises(UserError, match="no annotation for any image"):
        masks_from(tmp_path, [tmp_path / "c.png"], (8, 8))


def test_a_box_at_the_far_edge_keeps_a_pixel(tmp_path):
    edge = VOC.format(width=200).replace("<xmin>50</xmin>", "<xmin>200</xmin>").replace("<xmax>100<", "<xmax>201<")
    (tmp_path / "a.xml").write_text(edge)
    assert masks_from(tmp_path, [tmp_path / "a.png"], (8, 8))[0, 0, 7]


@pytest.mark.parametrize(
    "text", ["", "<annotation/>", VOC.format(width=0), VOC.format(width=60), VOC.format(width="wide")]
)
def test_damaged_annotations_are_refused_by_name(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=r"a\.xml"):
        read_boxes(tmp_path / "a.xml")


def test_labels_follow_the_models_list(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("n01 cat\nn02 dog\n\nn03\n")
    y, names = relabelled(np.array([1, 0]), ("n01", "n03"), path)
    assert y.tolist() == [2, 0] and names == ("n01", "n02", "n03")
    with pytest.raises(UserError, match="no class 'n09'"):
        relabelled(np.array([0]), ("n09",), path)
