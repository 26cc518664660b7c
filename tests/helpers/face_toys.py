"""Faces without images, for what is only about who is on them; few small ones, and a network that is none."""

import functools

import numpy as np

from face_mter.data.faces import Faces
from face_mter.data.portraits import portraits


def faces_of(counts):
    """`counts` images of one pixel of each of the people A_000, A_001, ..., in files like those of LFW."""
    names = tuple(f"A_{number:03d}" for number in range(len(counts)))
    person = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    files = tuple(
        f"{name}/{name}_{k + 1:04d}.jpg" for name, count in zip(names, counts, strict=True) for k in range(count)
    )
    return Faces("toys", np.zeros((len(person), 1, 1, 3), np.uint8), person, names, files, "0" * 64)


@functools.cache
def drawn_faces(people=40, each=6, size=16):
    """Portraits, as `load_faces` has them."""
    images, person = portraits(people, each, seed=0, size=size)
    names = tuple(f"person_{number:04d}" for number in range(people))
    files = tuple(f"{names[row // each]}/{row % each:04d}.png" for row in range(len(images)))
    return Faces("portraits", images, person, names, files, "0" * 64)


def linear_network(shape, classes, emb_size=8):
    """An embedding and logits by two dense layers, random: attacks on it are traced in no time."""
    import keras

    first, second = (keras.initializers.GlorotUniform(seed=k) for k in (1, 2))
    inputs = keras.Input(shape)
    e = keras.layers.Dense(emb_size, name="embedding", kernel_initializer=first)(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits", kernel_initializer=second)(e))
