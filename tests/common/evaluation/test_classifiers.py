"""Networks that others saved: taken where that is possible, and else refused in one line that names file and field."""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from common.attacks import pgd
from common.errors import UserError
from common.evaluation import classifiers
from common.evaluation.gradients import gradient_rows
from common.models import flat, places
from common.training import checkpoints

SHAPE, CLASSES = (16, 16, 3), 4
X = np.random.default_rng(0).integers(256, size=(12, *SHAPE), dtype=np.uint8)
Y = np.arange(12, dtype=np.int32) % CLASSES


def body(x, bias=0.0):
    x = layers.Conv2D(4, 3, activation="relu", kernel_initializer=keras.initializers.HeNormal(1), name="conv")(x)
    return layers.GlobalAveragePooling2D(name="pooled")(x)


def head(x, units=CLASSES, **more):
    return layers.Dense(units, kernel_initializer=keras.initializers.HeNormal(2), **more)(x)


def plain(**more):
    images = keras.Input(SHAPE, **more)
    return keras.Model(images, head(body(images), name="logits"))


def sequential():
    conv = layers.Conv2D(4, 3, activation="relu", kernel_initializer=keras.initializers.HeNormal(1), name="conv")
    dense = layers.Dense(CLASSES, kernel_initializer=keras.initializers.HeNormal(2))
    return keras.Sequential([keras.Input(SHAPE), conv, layers.GlobalAveragePooling2D(), dense])


def whole_numbers():
    images = keras.Input(SHAPE, dtype="uint8")
    return keras.Model(images, head(body(layers.Rescaling(1 / 255)(images))))


def dictionary():
    images = keras.Input(SHAPE, name="images")
    return keras.Model({images.name: images}, {"logits": head(body(images))})


def a_list():
    images = keras.Input(SHAPE)
    return keras.Model([images], [head(body(images))])


def one_at_a_time():
    images = keras.Input(batch_shape=(1, *SHAPE))
    return keras.Model(images, head(body(images)))


def nested():
    inner = keras.Input(SHAPE)
    backbone = keras.Model(inner, body(inner), name="backbone")
    images = keras.Input(SHAPE)
    return keras.Model(images, head(backbone(images, training=False)))


def with_softmax():
    model = sequential()
    return keras.Sequential([keras.Input(SHAPE), *model.layers, layers.Activation("softmax")])


TAKEN = {
    "functional": plain,
    "sequential": sequential,
    "whole numbers": whole_numbers,
    "a dictionary of one": dictionary,
    "a list of one": a_list,
    "one image at a time": one_at_a_time,
    "nested": nested,
    "softmax in a layer of its own": with_softmax,
    "half precision": lambda: plain(dtype="float16"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_can_be_taken_is_and_answers_as_before(tmp_path, kind):
    model = TAKEN[kind]()
    checkpoints.save_model(model, tmp_path / "m.keras")
    loaded = classifiers.load_classifier(tmp_path / "m.keras", X, Y, classes=CLASSES)
    given = X if kind == "whole numbers" else X / np.float32(255)
    shaped = {"a dictionary of one": lambda x: {"images": x}, "a list of one": lambda x: [x]}.get(kind, lambda x: x)
    answers = [keras.tree.flatten(model(shaped(one[None]), training=False))[0] for one in given]
    expected = np.concatenate([np.asarray(one, np.float32) for one in answers])
    tolerance = 1e-2 if kind == "half precision" else 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.asarray(loaded(X / np.float32(255), training=False))
    assert found.shape == (12, CLASSES) and np.allclose(found, expected, atol=tolerance)
    # An attack follows its gradient, in batches of any size.
    assert not gradient_rows(loaded, X / np.float32(255), Y, batch_size=5).zero.any()
    assert classifiers.load_classifier(tmp_path / "m.keras") is loaded


def two_outputs():
    images = keras.Input(SHAPE)
    return keras.Model(images, {"label": head(body(images)), "box": head(layers.Flatten()(images), 2)})


def two_inputs():
    images, mask = keras.Input(SHAPE, name="image"), keras.Input(SHAPE, name="mask")
    return keras.Model([images, mask], head(body(layers.Multiply()([images, mask]))))


def not_finite():
    model = plain()
    model.layers[-1].bias.assign([np.nan] * CLASSES)
    return model


def rounding():
    images = keras.Input(SHAPE)
    return keras.Model(images, head(body(keras.ops.cast(keras.ops.cast(255 * images, "int32"), "float32"))))


def hidden_softmax():
    images = keras.Input(SHAPE)
    z = head(body(images))
    return keras.Model(images, keras.ops.exp(z) / keras.ops.sum(keras.ops.exp(z), axis=-1, keepdims=True))


def grey():
    images = keras.Input((*SHAPE[:2], 1))
    return keras.Model(images, head(body(images)))


def vectors():
    images = keras.Input((8,))
    return keras.Model(images, head(images))


def maps():
    images = keras.Input(SHAPE)
    return keras.Model(images, layers.Conv2D(CLASSES, 3)(images))


REFUSED = {
    "two outputs": (two_outputs, r"has 2 outputs \(box \(2,\), label \(4,\)\); save a model with the one"),
    "two inputs": (two_inputs, r"has 2 inputs \(image \(16, 16, 3\), mask \(16, 16, 3\)\)"),
    "never built": (lambda: keras.Sequential([layers.Flatten(), layers.Dense(4)]), "was saved before it was built"),
    "not finite": (not_finite, "outputs values that are not finite"),
    "no gradient": (rounding, "has no gradient with respect to its images"),
    "a softmax that is hidden": (hidden_softmax, "answers with probabilities"),
    "grey": (grey, "takes images of 16 x 16 x 1, these are 16 x 16 x 3; bring images or model to the same channels"),
    "another size": (
        lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(4)]),
        "takes images of 8 x 8 x 3, these are 16 x 16 x 3; give --image-size",
    ),
    "no images": (vectors, r"maps \(None, 8\) to \(None, 4\); expected an image classifier"),
    "an answer for each pixel": (maps, "expected an image classifier"),
    "fewer classes": (
        lambda: keras.Model(i := keras.Input(SHAPE), head(body(i), 3)),
        "has 3 classes, the images have 4; a model that knows all of them",
    ),
    "more classes": (lambda: keras.Model(i := keras.Input(SHAPE), head(body(i), 5)), "have 4; take another"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_taken_is_refused_in_one_line(tmp_path, kind):
    build, message = REFUSED[kind]
    with warnings.catch_warnings():
        # Keras warns of one that is not built while it saves it.
        warnings.simplefilter("ignore")
        build().save(tmp_path / "m.keras")
    with pytest.raises(UserError, match=rf"m\.keras: .*{message}") as refusal:
        classifiers.load_classifier(tmp_path / "m.keras", X, Y, classes=CLASSES, remedy="take another")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_grey_images_need_no_axis_of_their_own(tmp_path):
    images = keras.Input(SHAPE[:2])
    model = keras.Model(images, head(layers.Flatten()(images)))
    checkpoints.save_model(model, tmp_path / "m.keras")
    loaded = classifiers.load_classifier(tmp_path / "m.keras", X[..., :1], Y, classes=CLASSES)
    x = X[..., :1] / np.float32(255)
    assert np.allclose(loaded(x), model(x[..., 0]), atol=1e-5)


def test_a_single_unit_is_a_binary_logit(tmp_path):
    images = keras.Input(SHAPE)
    checkpoints.save_model(keras.Model(images, head(body(images), 1, activation="sigmoid")), tmp_path / "m.keras")
    model = classifiers.load_classifier(tmp_path / "m.keras", X, Y % 2, classes=2)
    assert classifiers.class_count(model) == 2


def test_a_run_folder_is_its_model(tmp_path):
    checkpoints.save_model(plain(), tmp_path / "model.keras")
    assert classifiers.load_classifier(tmp_path, X).output_shape == (None, CLASSES)
    with pytest.raises(UserError, match=r"elsewhere/model\.keras: no such model file"):
        (tmp_path / "elsewhere").mkdir()
        classifiers.load_classifier(tmp_path / "elsewhere")


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    import os

    for place, build in enumerate((plain, with_softmax)):
        checkpoints.save_model(build(), tmp_path / "m.keras")
        os.utime(tmp_path / "m.keras", ns=(place, place))
        ends = classifiers.load_classifier(tmp_path / "m.keras").layers[-1]
        assert isinstance(ends, layers.Activation) == (build is with_softmax)


def test_a_class_of_its_own_is_refused(tmp_path):
    @keras.saving.register_keras_serializable("tests_classifiers")
    class Own(keras.Model):
        def __init__(self, **more):
            super().__init__(**more)
            self.dense = layers.Dense(CLASSES)

        def call(self, x):
            return self.dense(keras.ops.reshape(x, (-1, 768)))

    model = Own()
    model(X / np.float32(255))
    model.save(tmp_path / "own.keras")
    with pytest.raises(UserError, match=r"own\.keras: is a subclassed model; save a Sequential"):
        classifiers.load_classifier(tmp_path / "own.keras", X)


# Layers in the model's own graph


@pytest.mark.parametrize("kind", ["sequential", "softmax in a layer of its own", "functional", "nested"])
def test_maps_and_features_are_those_in_memory(tmp_path, kind):
    """A Sequential model read from a file has called its layers more than once."""
    from attention_defense.models.grad_cam import Attention
    from multimedia_recsys.models.cnn import extract, feature_model

    model = TAKEN[kind]()
    checkpoints.save_model(model, tmp_path / "m.keras")
    loaded = checkpoints.load_model(tmp_path / "m.keras")
    x = tf.constant(X / np.float32(255))
    before, after = (Attention(of) for of in (model, loaded))
    assert before.layer == after.layer == "conv"
    for one, other in zip(before(x), after(x), strict=True):
        assert np.allclose(one, other, atol=1e-6)
    for one, other in zip(extract(model, X), extract(loaded, X), strict=True):
        assert np.allclose(one, other, atol=1e-6)
    assert feature_model(loaded).output_shape == (None, 4)


def test_nested_models_are_taken_apart_and_share_their_weights():
    model = nested()
    whole = flat(model)
    assert next(place.layer.name for place in places(model)) == "backbone"
    assert [place.layer.name for place in places(whole)][:2] == ["conv", "pooled"]
    assert flat(plain_model := plain()) is plain_model
    x = X / np.float32(255)
    assert (np.asarray(whole(x)) == np.asarray(model(x))).all()
    model.get_layer("backbone").get_layer("conv").kernel.assign_add(np.ones((3, 3, 3, 4), np.float32))
    assert (np.asarray(whole(x)) == np.asarray(model(x))).all()


def test_a_layer_that_stands_twice_has_no_place():
    images = keras.Input((8,))
    twice = layers.Dense(8, name="twice")
    model = keras.Model(images, layers.Dense(2, name="last")(twice(twice(images))))
    assert [place.layer.name for place in places(model)] == ["last"]


def test_an_attack_on_what_was_loaded_stays_in_its_ball(tmp_path):
    checkpoints.save_model(whole_numbers(), tmp_path / "m.keras")
    model = classifiers.load_classifier(tmp_path / "m.keras", X, Y)
    attack = functools.partial(pgd, model, eps=8 / 255, alpha=2 / 255, steps=3, seed=0)
    x = X / np.float32(255)
    moved = attack(x, Y).numpy()
    assert 0 < np.abs(moved - x).max() <= 8 / 255 + 1e-6
