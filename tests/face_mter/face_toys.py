"""Faces without pictures, for what is only about who is on them."""

import numpy as np

from face_mter.faces import Faces


def faces_of(counts):
    """`counts` pictures of one pixel of each of the people A_000, A_001, ..., in files like those of LFW."""
    names = tuple(f"A_{number:03d}" for number in range(len(counts)))
    person = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    files = tuple(
        f"{name}/{name}_{k + 1:04d}.jpg" for name, count in zip(names, counts, strict=True) for k in range(count)
    )
    return Faces("toys", np.zeros((len(person), 1, 1, 3), np.uint8), person, names, files, "0" * 64)
