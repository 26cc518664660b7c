"""Data sets: scenes, named sets, `.npz`, folders and tars of images, and what each of them refuses."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from common.datasets import NAMES, downloads, load
from common.datasets.downloads import Source, fetch, parse_cifar10, parse_idx, read_cifar10, read_idx
from common.datasets.images import ImagePath, iterate_tar, list_images, list_tar, read_image, split, write_png
from common.datasets.npz import NpzStream, NpzWriter
from common.datasets.scenes import CLASS_NAMES, boxes_of, scenes
from common.errors import UserError


def keras_arrays(n=30, shape=(4, 5, 3), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", n), ("test", n // 3)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % classes
    return arrays


def save(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def refused(call, *words):
    """The one line of the `UserError` that `call` ends in, which must hold every one of `words`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def image(path, colour=(200, 40, 40), size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path):
    """Ten cats and twenty dogs, each of a colour of its own."""
    for kind, count in (("cat", 10), ("dog", 20)):
        for index in range(count):
            image(tmp_path / "photos" / kind / f"{index:02}.png", (index * 10, 30 if kind == "cat" else 90, index))
    return tmp_path / "photos"


def pack(path, members, mode="w"):
    """A tar of `members`, name -> bytes or a ready `TarInfo`."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def png_bytes(colour=(1, 2, 3), size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_scenes_have_the_promised_form():
    drawn = scenes(230, seed=1)
    assert drawn.images.shape == (230, 32, 32, 3) and drawn.images.dtype == np.uint8
    assert drawn.labels.shape == (230,) and drawn.labels.dtype == np.int32
    assert drawn.masks.shape == (230, 32, 32) and drawn.masks.dtype == bool
    assert drawn.boxes.shape == (230, 4) and drawn.boxes.dtype == np.int32
    assert np.bincount(drawn.labels[:200], minlength=10).tolist() == [20] * 10


def test_a_scene_depends_on_seed_and_index_alone():
    few, many = scenes(130, seed=5), scenes(310, seed=5)
    for short, long in zip(few, many, strict=True):
        np.testing.assert_array_equal(short, long[:130])
    assert not np.array_equal(many.images[:100], many.images[100:200])


def test_scenes_of_another_seed_or_part_are_others():
    base = scenes(100, seed=0).images
    for other in (scenes(100, seed=1), scenes(100, seed=0, split="test"), scenes(100, seed=1, split="test")):
        same = (base == other.images).all((1, 2, 3))
        assert not same.any()


def test_scenes_do_not_follow_numpys_global_state():
    np.random.seed(0)
    first = scenes(20, seed=2).images
    np.random.seed(1)
    np.testing.assert_array_equal(first, scenes(20, seed=2).images)


@pytest.mark.parametrize("size", [16, 32, 48])
def test_masks_are_never_empty_and_boxes_are_tight(size):
    drawn = scenes(300, seed=3, size=size)
    assert drawn.masks.sum((1, 2)).min() >= 4
    for mask, (top, left, bottom, right) in zip(drawn.masks, drawn.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert (top, left, bottom, right) == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)


def test_boxes_of_known_masks():
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 1, 2] = masks[1, 0, 5] = masks[1, 3, 1] = True
    assert boxes_of(masks).tolist() == [[1, 2, 2, 3], [0, 1, 4, 6]]


def test_the_mask_lies_on_the_object():
    """Where the mask is, hues of the class prevail: its mean colour separates classes better than the background's."""
    drawn = scenes(2000, seed=4)
    pixels = drawn.images.astype(np.float32)

    def separation(weights):
        colours = (pixels * weights[..., None]).sum((1, 2)) / weights.sum((1, 2))[:, None]
        means = np.stack([colours[drawn.labels == label].mean(0) for label in range(10)])
        return means.var(0).sum() / colours.var(0).sum()

    assert separation(drawn.masks) > 10 * separation(~drawn.masks)


def test_masks_cover_the_same_share_at_any_size():
    """A mask that took only pixels covered whole, or every pixel touched, would shrink or grow with coarser pixels."""
    coarse, fine = (scenes(200, seed=6, size=size).masks.mean() for size in (16, 64))
    assert coarse == pytest.approx(fine, rel=0.03)


def test_scenes_with_fewer_classes():
    assert set(scenes(100, seed=0, classes=3).labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    "options", [{"seed": -1}, {"seed": 0, "size": 8}, {"seed": 0, "classes": 11}, {"seed": 0, "split": "val"}]
)
def test_scenes_refuse(options):
    refused(lambda: scenes(1, **options), "scenes:")


def test_load_scenes():
    arrays = load("scenes", seed=7, n_train=50, n_test=20, image_size=16)
    assert arrays.x_train.shape == (50, 16, 16, 3) and arrays.class_names == CLASS_NAMES and arrays.classes == 10
    np.testing.assert_array_equal(arrays.masks_test, scenes(20, seed=7, size=16, split="test").masks)
    np.testing.assert_array_equal(arrays.boxes_train, boxes_of(arrays.masks_train))
    again = load("scenes", seed=7, n_train=50, n_test=20, image_size=16)
    assert arrays.sha256 == again.sha256 != load("scenes", seed=7, n_train=51, n_test=20, image_size=16).sha256


def test_npz_round_trip(tmp_path):
    arrays = keras_arrays()
    loaded = load(str(save(tmp_path / "a.npz", **arrays)))
    for key, value in arrays.items():
        np.testing.assert_array_equal(getattr(loaded, key), value)
    assert loaded.y_train.dtype == np.int32 and loaded.class_names == ("0", "1", "2")
    assert loaded.masks_train is None
    assert len(loaded.sha256) == 64
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.name = "other"


def test_npz_takes_the_first_and_keeps_the_classes(tmp_path):
    arrays = keras_arrays(classes=10)
    loaded = load(str(save(tmp_path / "a.npz", **arrays)), n_train=4, n_test=2)
    np.testing.assert_array_equal(loaded.x_train, arrays["x_train"][:4])
    np.testing.assert_array_equal(loaded.y_test, arrays["y_test"][:2])
    assert loaded.classes == 10
    assert len(load(str(tmp_path / "a.npz"), n_train=10**6).x_train) == 30


def test_npz_hash_follows_the_content_not_the_file(tmp_path):
    arrays = keras_arrays()
    first = load(str(save(tmp_path / "a.npz", **arrays))).sha256
    np.savez(tmp_path / "b.npz", **dict(reversed(arrays.items())))
    assert load(str(tmp_path / "b.npz")).sha256 == first
    arrays["x_train"][0, 0, 0, 0] ^= 1
    assert load(str(save(tmp_path / "a.npz", **arrays))).sha256 != first


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_npz_grey_images_and_column_labels(tmp_path, shape):
    arrays = keras_arrays(shape=shape)
    arrays["y_train"] = arrays["y_train"][:, None].astype(np.uint8)
    loaded = load(str(save(tmp_path / "a.npz", **arrays)))
    assert loaded.x_train.shape == (30, 4, 5, 1) and loaded.y_train.shape == (30,)
    np.testing.assert_array_equal(loaded.x_train[..., 0].ravel(), arrays["x_train"].ravel())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int64])
def test_npz_other_number_types_are_the_same_bytes(tmp_path, dtype):
    arrays = keras_arrays()
    scale = 255 if np.dtype(dtype).kind == "f" else 1
    given = arrays | {key: (arrays[key] / scale).astype(dtype) for key in ("x_train", "x_test")}
    np.testing.assert_array_equal(load(str(save(tmp_path / "a.npz", **given))).x_train, arrays["x_train"])


def test_npz_class_names(tmp_path):
    path = save(tmp_path / "a.npz", **keras_arrays(), class_names=np.array(["ant", "bee", "cow", "dog"]))
    assert load(str(path)).class_names == ("ant", "bee", "cow")
    refused(lambda: load(str(save(path, **keras_arrays(classes=5), class_names=np.array(["ant"])))), "label", "0 to 0")


def spoil(**changes):
    return lambda arrays: arrays | {key: change(arrays[key]) for key, change in changes.items()}


HOSTILE = {
    "objects": (spoil(y_train=lambda y: np.array([{}] * len(y), object)), ["y_train", "objects"]),
    "missing": (lambda arrays: {k: v for k, v in arrays.items() if k != "y_test"}, ["y_test", "Keras keys"]),
    "negative": (spoil(y_train=lambda y: y - 1), ["y_train", "-1"]),
    "huge label": (spoil(y_train=lambda y: y + 2**32), ["y_train", "labels"]),
    "unseen label": (spoil(y_test=lambda y: y + 1), ["y_test", "label 3", "0 to 2"]),
    "fraction": (spoil(y_train=lambda y: y + 0.5), ["y_train", "whole numbers"]),
    "nan label": (spoil(y_train=lambda y: np.where(y == 1, np.nan, y)), ["y_train", "whole numbers"]),
    "one-hot": (spoil(y_train=lambda y: np.eye(3)[y]), ["y_train", "one-hot"]),
    "text labels": (spoil(y_train=lambda y: y.astype(str)), ["y_train", "dtype"]),
    "lengths": (spoil(y_train=lambda y: y[:-1]), ["30", "29"]),
    "empty": (spoil(x_test=lambda x: x[:0], y_test=lambda y: y[:0]), ["y_test", "empty"]),
    "no pixels": (spoil(x_train=lambda x: x[:, :0]), ["x_train", "empty"]),
    "nan": (spoil(x_train=lambda x: np.where(x == x[0, 0, 0, 0], np.nan, x / 255)), ["x_train", "NaN", "rint"]),
    "0-255 floats": (spoil(x_test=lambda x: x.astype(np.float32)), ["x_test", "[0, 1]", "rint"]),
    "minus": (spoil(x_test=lambda x: x / 127.5 - 1), ["x_test", "[0, 1]"]),
    "16 bit": (spoil(x_test=lambda x: x.astype(np.int32) * 257), ["x_test", "0..255"]),
    "channels first": (spoil(x_train=lambda x: x.transpose(0, 3, 1, 2)), ["x_train", "transpose"]),
    "flat": (spoil(x_train=lambda x: x.reshape(len(x), -1)), ["x_train", "reshape"]),
    "two sizes": (spoil(x_test=lambda x: x[:, :3]), ["x_train", "x_test", "shape"]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_e2_npz_refusals(tmp_path, case):
    """Object arrays, and arrays that are not what they should be."""
    change, words = HOSTILE[case]
    path = save(tmp_path / "bad.npz", **change(keras_arrays()))
    refused(lambda: load(str(path)), str(path), *words)


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.7, 0.99])
def test_d4_truncated_npz(tmp_path, keep):
    path = save(tmp_path / "a.npz", **keras_arrays())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    refused(lambda: load(str(path)), str(path))


def test_damaged_data_inside_an_npz(tmp_path):
    np.savez(tmp_path / "a.npz", **keras_arrays())
    path, marker = tmp_path / "a.npz", keras_arrays()["x_train"][3].tobytes()
    data = path.read_bytes()
    assert marker in data
    path.write_bytes(data.replace(marker, marker[::-1]))
    refused(lambda: load(str(path)), "x_train", "damaged")


def test_load_refuses(tmp_path):
    refused(lambda: load("mnits"), "mnits", *NAMES)
    refused(lambda: load("scenes", n_train=0), "n_train=0")
    refused(lambda: load("scenes", seed=-1), "seed=-1")
    (tmp_path / "a.csv").write_text("1,2\n")
    refused(lambda: load(str(tmp_path / "a.csv")), "a.csv", ".npz")
    path = save(tmp_path / "a.npz", **keras_arrays())
    refused(lambda: load(str(path), image_size=9), "image_size=9", "4 x 5")


def lying_npz(path, declared, claimed=None):
    """An `.npz` of a few bytes whose `x_train` header declares `declared` bytes, and its directory `claimed`."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (declared // 2**20, 1024, 1024)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", header.getvalue() + bytes(100))
    if claimed:
        data = bytearray(path.read_bytes())
        struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, claimed)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("claimed", [None, 2**32 - 2**20])
def test_e3_declared_size_bomb(tmp_path, claimed):
    """Gigabytes declared in a file of a kilobyte, by the array and then by the zip directory too."""
    path = lying_npz(tmp_path / "bomb.npz", 3 * 2**30 if claimed else 10 * 2**30, claimed)
    assert path.stat().st_size < 1024
    tracemalloc.start()
    refused(lambda: NpzStream(path, "x_train"), "bomb.npz", "hostile")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_stream_equals_the_whole(tmp_path):
    x = np.random.default_rng(0).standard_normal((103, 7, 2)).astype(np.float32)
    stream = NpzStream(save(tmp_path / "a.npz", x=x), "x")
    assert stream.shape == x.shape and stream.dtype == x.dtype
    for rows in (1, 10, 103, 500):
        chunks = list(stream.iterate(rows))
        assert max(map(len, chunks)) == min(rows, 103)
        np.testing.assert_array_equal(np.concatenate(chunks), x)
    np.testing.assert_array_equal(np.concatenate(list(stream.iterate(10, 17, 60))), x[17:60])
    np.testing.assert_array_equal(np.concatenate(list(stream.iterate(10, -5))), x[-5:])
    assert list(stream.iterate(10, 50, 50)) == []
    np.testing.assert_array_equal(stream.read(3), x[:3])
    chunk = next(stream.iterate(4))
    chunk[:] = 0


def test_stream_gives_native_byte_order(tmp_path):
    stream = NpzStream(save(tmp_path / "a.npz", x=np.arange(9, dtype=">i4")), "x")
    assert stream.dtype.isnative
    assert next(stream.iterate(9)).dtype.isnative
    assert stream.read().tolist() == list(range(9))


def test_stream_refuses_data_behind_the_last_row(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (3,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"12345")
    stream = NpzStream(tmp_path / "a.npz", "x")
    assert stream.read(2).tolist() == [49, 50]
    refused(stream.read, "a.npz[x]", "more data")


def test_stream_refuses(tmp_path):
    path = save(tmp_path / "a.npz", x=np.zeros(3), one=np.float32(1))
    refused(lambda: NpzStream(path, "y"), "'y'", "x")
    refused(lambda: NpzStream(path, "one"), "one")
    refused(lambda: NpzStream(tmp_path / "none.npz", "x"), "none.npz")
    with pytest.raises(ValueError, match="chunk_rows"):
        next(NpzStream(path, "x").iterate(0))


def test_writer_round_trip_and_same_bytes_for_any_chunks(tmp_path):
    x = np.random.default_rng(0).integers(0, 9, (50, 6, 4), np.uint8)
    flags, names = np.arange(50) % 2 == 0, np.array(["ant", "bee"])
    for path, rows in ((tmp_path / "a.npz", 7), (tmp_path / "b.npz", 50)):
        with NpzWriter(path) as writer:
            member = writer.member("x", x.shape, x.dtype)
            for first in range(0, 50, rows):
                member.append(x[first : first + rows])
            writer.member("flags", flags.shape, bool).append(flags)
            writer.member("names", names.shape, names.dtype).append(names)
            writer.member("none", (0, 3), np.float32)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["x"], x)
        np.testing.assert_array_equal(loaded["flags"], flags)
        np.testing.assert_array_equal(loaded["names"], names)
        assert loaded["none"].shape == (0, 3)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_writer_takes_rows_that_are_not_contiguous(tmp_path):
    x = np.arange(24, dtype=np.int32).reshape(4, 6)
    with NpzWriter(tmp_path / "a.npz") as writer:
        writer.member("x", (6, 4), np.int32).append(x.T)
    np.testing.assert_array_equal(NpzStream(tmp_path / "a.npz", "x").read(), x.T)


def write_wrong(writer, case):
    member = writer.member("x", (3, 2), np.uint8)
    if case == "too few":
        member.append(np.zeros((2, 2), np.uint8))
    elif case == "too many":
        member.append(np.zeros((4, 2), np.uint8))
    elif case == "shape":
        member.append(np.zeros((1, 3), np.uint8))
    elif case == "dtype":
        member.append(np.zeros((1, 2), np.float32))
    elif case == "next before full":
        writer.member("y", (1,), np.uint8)
    elif case == "twice":
        member.append(np.zeros((3, 2), np.uint8))
        writer.member("x", (1,), np.uint8)
    elif case == "objects":
        member.append(np.zeros((3, 2), np.uint8))
        writer.member("y", (1,), object)
    elif case == "interrupted":
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "case", ["too few", "too many", "shape", "dtype", "next before full", "twice", "objects", "interrupted"]
)
def test_writer_refuses_and_leaves_the_old_file(tmp_path, case):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt if case == "interrupted" else ValueError), NpzWriter(path) as writer:
        write_wrong(writer, case)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.npz"]


def test_stream_and_writer_never_hold_the_whole(tmp_path):
    rows = np.zeros((500, 4096), np.uint8)
    tracemalloc.start()
    with NpzWriter(tmp_path / "a.npz", level=1) as writer:
        member = writer.member("x", (20_000, 4096), np.uint8)
        for _ in range(40):
            member.append(rows)
    total = sum(int(chunk.sum()) + len(chunk) for chunk in NpzStream(tmp_path / "a.npz", "x").iterate(500, 250))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 19_750
    assert peak < 12e6 < 20_000 * 4096


def test_list_images(photos):
    (photos / "cat" / ".hidden.png").write_bytes(b"")
    (photos / "cat" / "notes.txt").write_text("three legs")
    (photos / "labels.csv").write_text("")
    image(photos / "cat" / "wide.JPG", size=(12, 5))
    images, names = list_images(photos)
    assert names == ("cat", "dog") and len(images) == 31
    assert [p.path.name for p in images[:11]] == [f"{index:02}.png" for index in range(10)] + ["wide.JPG"]
    assert images[10] == ImagePath(photos / "cat" / "wide.JPG", 0, "cat", 12, 5)
    assert images[-1].label == 1


def test_list_images_refuses(photos, tmp_path):
    refused(lambda: list_images(tmp_path / "none"), "none", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(lambda: list_images(tmp_path / "empty"), "empty", "class folders")
    (photos / "bird").mkdir()
    refused(lambda: list_images(photos), "bird", "no images")
    (photos / "bird" / "sub").mkdir()
    refused(lambda: list_images(photos), "sub")
    (photos / "bird" / "sub").rmdir()
    (photos / "bird" / "a.gif").write_bytes(b"GIF89a")
    refused(lambda: list_images(photos), "a.gif", "convert")
    (photos / "bird" / "a.gif").unlink()
    (photos / "bird" / "a.png").write_text("this is text")
    refused(lambda: list_images(photos), str(photos / "bird" / "a.png"), "not a readable image", "remove or replace")


def exif_with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    exif[0x010F] = "Maker"
    return exif


def upright_by_hand(pixels, orientation):
    turned = pixels.transpose(1, 0, 2) if orientation >= 5 else pixels
    rows = orientation in (3, 4, 7, 8)
    columns = orientation in (2, 3, 6, 7)
    return turned[:: -1 if rows else 1, :: -1 if columns else 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    path = tmp_path / "photos" / "cat" / "a.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(path, exif=exif_with_orientation(orientation))
    expected = upright_by_hand(pixels, orientation)
    read = read_image(path)
    np.testing.assert_array_equal(read.rgb, expected)
    listed = list_images(tmp_path / "photos")[0][0]
    assert (listed.height, listed.width) == expected.shape[:2]
    exif = Image.Exif()
    exif.load(read.metadata["exif"])
    assert dict(exif) == {0x010F: "Maker"}

    write_png(tmp_path / "b.png", read.rgb, read.alpha, read.metadata)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").rgb, expected)


def test_exif_rotation_of_a_jpeg(tmp_path):
    path = image(tmp_path / "photos" / "cat" / "a.jpg", size=(16, 8), exif=exif_with_orientation(6))
    listed = list_images(tmp_path / "photos")[0][0]
    assert (listed.width, listed.height) == (8, 16)
    assert read_image(path).rgb.shape == (16, 8, 3)


def test_exif_behind_the_pixels_of_a_png(tmp_path):
    """Some tools append EXIF to a PNG, where only a reader of the whole file finds it."""
    path = image(tmp_path / "photos" / "cat" / "a.png", size=(16, 8), exif=exif_with_orientation(6))
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    stop = start + 12 + struct.unpack_from(">I", data, start)[0]
    end = data.index(b"IEND") - 4
    path.write_bytes(data[:start] + data[stop:end] + data[start:stop] + data[end:])
    listed = list_images(tmp_path / "photos")[0][0]
    assert (listed.height, listed.width) == read_image(path).rgb.shape[:2] == (16, 8)


def test_alpha_of_every_kind(tmp_path):
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (6, 5, 4), np.uint8)
    for name in ("a.png", "a.webp"):
        Image.fromarray(rgba).save(tmp_path / name, **({"lossless": True, "exact": True} if "webp" in name else {}))
        read = read_image(tmp_path / name)
        np.testing.assert_array_equal(read.rgb, rgba[..., :3])
        np.testing.assert_array_equal(read.alpha, rgba[..., 3])

    Image.fromarray(rgba[..., :2], "LA").save(tmp_path / "la.png")
    read = read_image(tmp_path / "la.png")
    np.testing.assert_array_equal(read.rgb, np.repeat(rgba[..., :1], 3, 2))
    np.testing.assert_array_equal(read.alpha, rgba[..., 1])

    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "p.png", transparency=bytes([255, 0, 128]))
    read = read_image(tmp_path / "p.png")
    assert read.alpha.tolist() == [[255, 0], [128, 0]]
    assert read.rgb[0, 0].tolist() == [10, 20, 30] and read.rgb[1, 0].tolist() == [70, 80, 90]

    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(tmp_path / "k.png", transparency=(4, 5, 6))
    assert read_image(tmp_path / "k.png").alpha.tolist() == [[255, 0]]


@pytest.mark.parametrize(("colour", "values"), [(0, [1000, 40_000]), (2, [1000, 2, 3, 40_000, 65_535, 257])])
def test_colour_key_of_16_bits(tmp_path, colour, values):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = struct.pack(f">{len(values)}H", *values)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 2, 1, 16, colour, 0, 0, 0),
        b"tRNS": row[len(row) // 2 :],
        b"IDAT": zlib.compress(b"\0" + row),
        b"IEND": b"",
    }
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks.items()))
    read = read_image(tmp_path / "a.png")
    assert read.alpha.tolist() == [[255, 0]] and read.rgb[0, 1, 0] == 156


def test_opaque_modes_become_rgb(tmp_path):
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "l.png")
    Image.fromarray(grey > 150).save(tmp_path / "1.png")
    Image.fromarray((grey * 257.0 + 100).clip(0, 65535).astype(np.uint16)).save(tmp_path / "16.png")
    for name, expected in (("l.png", grey), ("1.png", (grey > 150) * 255), ("16.png", grey)):
        rgb, alpha, _ = read_image(tmp_path / name)
        assert rgb.dtype == np.uint8 and alpha is None
        np.testing.assert_array_equal(rgb, np.repeat(np.asarray(expected)[..., None], 3, 2))


def test_cmyk(tmp_path):
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[..., 0] = 255
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.jpg", quality=100, icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 108)
    read = read_image(tmp_path / "a.jpg")
    assert np.abs(read.rgb.astype(int) - [0, 255, 255]).max() <= 3
    assert "icc_profile" not in read.metadata


def test_png_keeps_pixels_alpha_and_metadata(tmp_path):
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (7, 9, 4), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Noë")
    Image.fromarray(rgba).save(
        tmp_path / "a.png", exif=exif_with_orientation(1), icc_profile=profile, dpi=(300, 150), pnginfo=text
    )
    first = read_image(tmp_path / "a.png")
    write_png(tmp_path / "b.png", *first)
    second = read_image(tmp_path / "b.png")
    np.testing.assert_array_equal(second.rgb, rgba[..., :3])
    np.testing.assert_array_equal(second.alpha, rgba[..., 3])
    assert second.metadata["icc_profile"] == profile
    assert second.metadata["text"] == {"Author": "Noë"}
    assert second.metadata["exif"] == first.metadata["exif"]
    assert second.metadata["dpi"] == pytest.approx((300, 150), abs=0.1)


def test_comment_of_a_jpeg_is_kept(tmp_path):
    image(tmp_path / "a.jpg", comment="by hand")
    write_png(tmp_path / "b.png", *read_image(tmp_path / "a.jpg"))
    assert read_image(tmp_path / "b.png").metadata["text"] == {"Comment": "by hand"}


def test_png_is_whole_or_absent(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    rgb = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises((TypeError, AttributeError)):
        write_png(tmp_path / "a.png", rgb, metadata={"exif": 5})
    assert os.listdir(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"old"
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "a.png", rgb.astype(np.float32))
    with pytest.raises(ValueError, match="alpha"):
        write_png(tmp_path / "a.png", rgb, np.zeros((3, 3), np.uint8))


def test_unreadable_images(tmp_path):
    whole = image(tmp_path / "whole.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "cut.png").write_bytes(png_bytes(size=(64, 64))[:60])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.webp").write_bytes(b"")
    for name in ("cut.jpg", "cut.png", "text.png", "empty.webp"):
        refused(lambda name=name: read_image(tmp_path / name), str(tmp_path / name), "not a readable image")
    refused(lambda: read_image(tmp_path / "none.png"), "none.png", "No such file")


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_animations_are_refused(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    refused(lambda: read_image(tmp_path / f"a.{suffix}"), "animation", "2 frames")


def test_a_photograph_with_a_second_view_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.jpg").rgb[0, 0, 0] > 200


def test_e3_decompression_bomb(tmp_path, recwarn):
    """A PNG header of 30,000 x 30,000 pixels over a few bytes is refused before a pixel is unpacked."""
    data = bytearray(png_bytes())
    struct.pack_into(">II", data, 16, 30_000, 30_000)
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    path = tmp_path / "photos" / "cat" / "a.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    tracemalloc.start()
    refused(lambda: read_image(path), "a.png")
    refused(lambda: list_images(tmp_path / "photos"), "a.png")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    struct.pack_into(">II", data, 16, 13_000, 13_000)
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    refused(lambda: read_image(path), "13000 x 13000", "scale it down")
    assert not recwarn.list


@pytest.mark.parametrize("seed", range(5))
def test_split_is_stratified(seed):
    counts = [1, 2, 3, 15, 40, 101]
    images = [ImagePath(Path(f"{i}"), c, str(c), 1, 1) for c, n in enumerate(counts) for i in range(n)]
    labels = np.array([p.label for p in images])
    is_test = split(images, 0.1, seed)
    assert is_test.dtype == bool and is_test.shape == labels.shape
    assert [int(is_test[labels == c].sum()) for c in range(6)] == [0, 1, 1, 2, 4, 10]
    np.testing.assert_array_equal(is_test, split(images, 0.1, seed))
    assert not np.array_equal(is_test, split(images, 0.1, seed + 1))
    assert [int((~split(images, 0.99, seed))[labels == c].sum()) for c in range(6)] == [1] * 6


def test_split_refuses():
    for share in (0, 1, -0.1, float("nan")):
        refused(lambda share=share: split([], share, 0), "validation_share")
    refused(lambda: split([], 0.1, -1), "seed")


def rows(x):
    return {image.tobytes() for image in x}


def test_load_folder(photos):
    arrays = load(str(photos), seed=3)
    assert arrays.x_train.shape == (27, 8, 8, 3) and arrays.x_test.shape == (3, 8, 8, 3)
    assert arrays.class_names == ("cat", "dog")
    assert sorted(arrays.y_test.tolist()) == [0, 1, 1]
    assert len(rows(arrays.x_train) | rows(arrays.x_test)) == 30
    for x, y in ((arrays.x_train, arrays.y_train), (arrays.x_test, arrays.y_test)):
        np.testing.assert_array_equal(x[:, 0, 0, 1] == 90, y == 1)

    again, other = load(str(photos), seed=3), load(str(photos), seed=4)
    assert arrays.sha256 == again.sha256 != other.sha256
    few = load(str(photos), seed=3, n_train=6, n_test=2)
    np.testing.assert_array_equal(few.x_train, arrays.x_train[:6])
    np.testing.assert_array_equal(few.y_test, arrays.y_test[:2])
    assert len(set(few.y_train.tolist())) == 2


def test_load_folder_with_parts(photos, tmp_path):
    root = tmp_path / "both"
    (root / "train").mkdir(parents=True)
    os.rename(photos, root / "train2")
    os.rename(root / "train2", root / "train")
    image(root / "test" / "dog" / "a.png", (7, 7, 7))
    arrays = load(str(root))
    assert len(arrays.x_train) == 30 and arrays.y_test.tolist() == [1]
    image(root / "test" / "emu" / "a.png")
    refused(lambda: load(str(root)), "emu")


def test_load_folder_sizes(photos):
    tall = np.zeros((20, 8, 3), np.uint8)
    tall[6:14] = 255
    Image.fromarray(tall).save(photos / "cat" / "tall.png")
    refused(lambda: load(str(photos)), "differing sizes", "20 x 8", "--image-size")
    arrays = load(str(photos), image_size=4)
    assert arrays.x_train.shape[1:] == (4, 4, 3)
    bright = [x for x in np.concatenate([arrays.x_train, arrays.x_test]) if x.max() > 205 and x[1:3].min() > 150]
    assert len(bright) == 1 and bright[0][[0, 3]].max() < 50, "the whole image is scaled, nothing is cut off"
    refused(lambda: load(str(photos), image_size=4, validation_share=1.5), "validation_share")


def test_load_folder_without_a_test_image(tmp_path):
    image(tmp_path / "photos" / "cat" / "a.png")
    refused(lambda: load(str(tmp_path / "photos")), "photos", "testing")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tgz"])
def test_tar_equals_the_folder(photos, tmp_path, suffix):
    path = tmp_path / f"photos.{suffix}"
    with tarfile.open(path, {"tar": "w", "tar.xz": "w:xz"}.get(suffix, "w:gz")) as archive:
        for file in sorted(photos.rglob("*.png"), reverse=True):
            archive.add(file, f"./photos/{file.relative_to(photos)}")
    before = sorted(os.listdir(tmp_path))
    for options in ({}, {"n_train": 5, "n_test": 2}, {"image_size": 4}):
        folder, tar = load(str(photos), seed=2, **options), load(str(path), seed=2, **options)
        assert tar.sha256 == folder.sha256
    assert sorted(os.listdir(tmp_path)) == before


def test_tar_with_parts(tmp_path):
    members = {f"root/{part}/{kind}/a.png": png_bytes() for part in ("train", "test") for kind in ("cat", "dog")}
    images, names = list_tar(pack(tmp_path / "a.tar", members))
    assert names == ("cat", "dog")
    assert [(p.part, p.label) for p in images] == [("test", 0), ("test", 1), ("train", 0), ("train", 1)]
    assert len(load(str(tmp_path / "a.tar")).x_test) == 2
    members.pop("root/train/dog/a.png")
    refused(lambda: load(str(pack(tmp_path / "a.tar", members))), "dog", "training")
    members.pop("root/train/cat/a.png")
    refused(lambda: load(str(pack(tmp_path / "a.tar", members))), "train/")


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


BAD_MEMBERS = {
    "parent": ("../evil/a.png", None),
    "inner parent": ("cat/../../evil.png", None),
    "absolute": ("/tmp/cat/a.png", None),
    "backslash": ("cat\\..\\a.png", None),
    "hard link": ("cat/b.png", special("cat/b.png", tarfile.LNKTYPE, "cat/a.png")),
    "symbolic link": ("cat/b.png", special("cat/b.png", tarfile.SYMTYPE, "/etc/passwd")),
    "device": ("cat/b.png", special("cat/b.png", tarfile.CHRTYPE)),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_e2_tar_refuses_what_leaves_its_folder(tmp_path, case):
    """`../`, absolute names, hard links, symbolic links and devices; nothing is written."""
    name, content = BAD_MEMBERS[case]
    path = pack(tmp_path / "a.tar", {"cat/a.png": png_bytes(), "dog/a.png": png_bytes(), name: content or png_bytes()})
    refused(lambda: load(str(path)), str(path), name)
    assert os.listdir(tmp_path) == ["a.tar"]


def test_tar_refuses(tmp_path):
    refused(lambda: list_tar(pack(tmp_path / "a.tar", {"a.txt": b"x"})), "no images")
    refused(lambda: list_tar(pack(tmp_path / "a.tar", {"a.png": png_bytes()})), "no class folder")
    refused(lambda: list_tar(pack(tmp_path / "a.tar", {"cat/a.png": b"", "x/dog/a.png": b""})), "differing depths")
    bad = pack(tmp_path / "a.tar", {"cat/a.png": png_bytes(), "cat/b.png": b"text"})
    refused(lambda: load(str(bad)), "a.tar[cat/", "not a readable image")
    two = pack(tmp_path / "a.tar", {"cat/a.png": png_bytes(), "cat/b.png": png_bytes(size=(9, 9))})
    refused(lambda: load(str(two)), "differing sizes", "--image-size")
    pack(tmp_path / "a.tar", {"cat/a.png": png_bytes()})
    pack(tmp_path / "a.tar", {"cat/a.png": png_bytes()}, "a")
    refused(lambda: list_tar(tmp_path / "a.tar"), "twice")
    (tmp_path / "b.tar").write_bytes(b"no tar at all")
    refused(lambda: list_tar(tmp_path / "b.tar"), "b.tar", "not a readable tar")
    refused(lambda: list_tar(tmp_path / "c.tar"), "c.tar", "no such file")
    whole = pack(tmp_path / "d.tar.xz", {f"cat/{i}.png": os.urandom(5000) for i in range(9)}, "w:xz").read_bytes()
    (tmp_path / "d.tar.xz").write_bytes(whole[: len(whole) // 2])
    refused(lambda: list_tar(tmp_path / "d.tar.xz"), "d.tar.xz", "truncated")


def test_iterate_tar_gives_what_was_asked_for(tmp_path):
    path = pack(tmp_path / "a.tar", {f"cat/{i}.png": png_bytes((i, 0, 0)) for i in range(5)})
    found = {name: int(read.rgb[0, 0, 0]) for name, read in iterate_tar(path, ["cat/3.png", "cat/1.png"])}
    assert found == {"cat/1.png": 1, "cat/3.png": 3}


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_idx(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(parse_idx(idx(array), "a"), array)
    np.testing.assert_array_equal(parse_idx(idx(array[0, 0]), "a"), array[0, 0])
    for data in (b"", b"\0\0", idx(array)[:-1], idx(array) + b"x", b"\0\0\x0d" + idx(array)[3:], idx(array)[:9]):
        refused(lambda data=data: parse_idx(data, "a.gz"), "a.gz")
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), array)
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(array))[:-9])
    refused(lambda: read_idx(tmp_path / "a.gz"), "a.gz")


def cifar_record(label, pixels):
    return bytes([label]) + pixels.transpose(2, 0, 1).tobytes()


def cifar_archive(path, per_batch=2):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, per_batch, 32, 32, 3), np.uint8)
    members = {"cifar-10-batches-bin/readme.html": b"<html>"}
    order = (*downloads.CIFAR_TRAIN, *downloads.CIFAR_TEST)
    for batch, name in reversed(list(enumerate(order))):
        members[name] = b"".join(cifar_record(batch, image) for image in images[batch])
    return pack(path, members, "w:gz"), images


def test_cifar10_binary(tmp_path):
    path, images = cifar_archive(tmp_path / "cifar.tar.gz")
    arrays = read_cifar10(path)
    np.testing.assert_array_equal(arrays["x_train"], images[:5].reshape(-1, 32, 32, 3))
    assert arrays["y_train"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and arrays["y_test"].tolist() == [5, 5]
    np.testing.assert_array_equal(arrays["x_test"], images[5])


def test_cifar10_refuses(tmp_path):
    record = cifar_record(3, np.zeros((32, 32, 3), np.uint8))
    assert parse_cifar10(record, "a")[1].tolist() == [3]
    refused(lambda: parse_cifar10(record[:-1], "a.bin"), "a.bin", "3073")
    refused(lambda: parse_cifar10(b"", "a.bin"), "a.bin")
    refused(lambda: parse_cifar10(b"\x0a" + record[1:], "a.bin"), "label 10")
    path = pack(tmp_path / "a.tar", {downloads.CIFAR_TRAIN[0]: record})
    refused(lambda: read_cifar10(path), "data_batch_2.bin")


def known(monkeypatch, name, *files):
    """Make the `files` (path under the data folder, its bytes) the known ones of `name`."""
    sources = tuple(
        Source(file, f"http://127.0.0.1:9/{file}", hashlib.sha256(data).hexdigest()) for file, data in files
    )
    monkeypatch.setitem(downloads.NAMED, name, downloads.NAMED[name]._replace(sources=sources))


def test_e4_named_sets_from_local_files(tmp_path, monkeypatch):
    """A file with the known hash is used offline."""
    digits = save(tmp_path / "mnist.npz", **keras_arrays(shape=(28, 28), classes=4))
    known(monkeypatch, "mnist", ("mnist.npz", digits.read_bytes()))
    arrays = load("mnist", data_dir=tmp_path, n_train=5)
    assert arrays.x_train.shape == (5, 28, 28, 1) and arrays.classes == 10

    x, y = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28), np.array([9, 0, 4], np.uint8)
    packed = [gzip.compress(idx(array)) for array in (x, y, x[:2], y[:2])]
    files = [
        (f"fashion_mnist/{part}-{what}.gz", data)
        for (part, what), data in zip(
            [("train", "images"), ("train", "labels"), ("t10k", "images"), ("t10k", "labels")], packed, strict=True
        )
    ]
    (tmp_path / "fashion_mnist").mkdir()
    for file, data in files:
        (tmp_path / file).write_bytes(data)
    known(monkeypatch, "fashion_mnist", *files)
    arrays = load("fashion_mnist", data_dir=tmp_path, n_test=1)
    np.testing.assert_array_equal(arrays.x_train[..., 0], x)
    assert arrays.y_train.tolist() == [9, 0, 4] and arrays.y_test.tolist() == [9]
    assert arrays.class_names[9] == "Ankle boot"

    archive, images = cifar_archive(tmp_path / "cifar-10-binary.tar.gz")
    known(monkeypatch, "cifar10", ("cifar-10-binary.tar.gz", archive.read_bytes()))
    arrays = load("cifar10", data_dir=tmp_path, n_train=3)
    np.testing.assert_array_equal(arrays.x_train, images[:2].reshape(-1, 32, 32, 3)[:3])
    assert arrays.class_names[3] == "cat"


@pytest.mark.parametrize("name", downloads.NAMED)
def test_e4_wrong_hash_is_refused_and_the_file_stays(tmp_path, name):
    """Another file under the known name."""
    path = tmp_path / downloads.NAMED[name].sources[0].file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"not the data")
    refused(lambda: load(name, data_dir=tmp_path), str(path), "SHA-256", downloads.NAMED[name].sources[0].sha256)
    assert path.read_bytes() == b"not the data"


def test_e4_every_download_has_a_sha256_and_goes_through_fetch():
    for source in (source for data_set in downloads.NAMED.values() for source in data_set.sources):
        assert len(bytes.fromhex(source.sha256)) == 32 and source.url.startswith("https://")
    # `fetch` takes a file that is there with the known hash, so each has a way without a network.
    root = Path(downloads.__file__).resolve().parents[2]
    apps = {path.parent for path in root.glob("*/__init__.py")}
    reaching = r"\b(urlopen|urlretrieve|get_file|pooch|requests|httpx|aiohttp)\b *[.(]|import (pooch|requests|urllib)"
    assert {path for app in apps for path in app.rglob("*.py") if re.search(reaching, path.read_text("utf-8"))} == {
        Path(downloads.__file__).resolve()
    }


@pytest.fixture
def server(tmp_path):
    """A web server on the loopback interface and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_e4_download(tmp_path, server):
    """A right download is kept and then used offline; a wrong one is refused and leaves nothing."""
    folder, url = server
    (folder / "a.bin").write_bytes(b"content")
    source = Source("sub/a.bin", f"{url}/a.bin", hashlib.sha256(b"content").hexdigest())
    path = fetch(source, tmp_path / "data")
    assert path == tmp_path / "data" / "sub" / "a.bin" and path.read_bytes() == b"content"
    (folder / "a.bin").unlink()
    assert fetch(source, tmp_path / "data") == path

    (folder / "b.bin").write_bytes(b"tampered")
    wrong = Source("wrong/b.bin", f"{url}/b.bin", source.sha256)
    refused(lambda: fetch(wrong, tmp_path / "data"), wrong.url, "SHA-256")
    assert not list((tmp_path / "data").glob("wrong/*"))


def test_a_download_says_how_far_it_is(tmp_path, server, capsys, monkeypatch):
    folder, url = server
    content = bytes(2_500_000)
    (folder / "a.bin").write_bytes(content)
    monkeypatch.setattr("common.progress._LINE", 0.0)
    fetch(Source("a.bin", f"{url}/a.bin", hashlib.sha256(content).hexdigest()), tmp_path / "data")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("downloading a.bin: 1/3 MB, ") and lines[-1].startswith("downloading a.bin: 3/3 MB, ")


def test_e4_failed_download_names_the_url_and_the_remedy(tmp_path):
    source = Source("a.npz", "http://127.0.0.1:9/a.npz", "0" * 64)
    refused(lambda: fetch(source, tmp_path), source.url, f"put the file at {tmp_path / 'a.npz'}", "copy by its path")


def test_g5_importing_is_light():
    """`--help` must not wait for TensorFlow, Pillow or Pooch."""
    heavy = "tensorflow keras PIL pooch"
    program = f"import sys, common.datasets; sys.exit(any(name in sys.modules for name in {heavy.split()}))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def real(name):
    folder = os.environ.get("SUITE_DATA")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"SUITE_DATA names no folder with {name}")
    return str(Path(folder) / name)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "shape"), [("mnist.npz", (60_000, 28, 28, 1)), ("cifar10_part.npz", None)])
def test_real_npz(name, shape):
    arrays = load(real(name))
    assert arrays.classes == 10 and set(arrays.y_test.tolist()) == set(range(10))
    assert shape in (None, arrays.x_train.shape)


@pytest.mark.realdata
def test_real_faces():
    arrays = load(real("lfw64_part.tar"), n_train=200, n_test=50)
    assert arrays.x_train.shape == (200, 64, 64, 3) and arrays.classes == 3990
    assert len(rows(arrays.x_train) & rows(arrays.x_test)) == 0
