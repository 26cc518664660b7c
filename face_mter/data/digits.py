"""Images of digits: scikit-learn's, which need no download, and whatever `common.datasets` reads."""

import hashlib
from pathlib import Path

import numpy as np

from common import datasets
from common.datasets import Arrays
from common.errors import UserError

_TEST = 497


def load_digit_images(
    dataset: str = "digits",
    *,
    data_dir: Path = Path("data"),
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
) -> Arrays:
    """The data set called `dataset`; `digits` are 1,300 and 497 images (8, 8, 1) of 0 to 9.

    Errors: as `common.datasets.load`.
    """
    if dataset != "digits":
        return datasets.load(dataset, data_dir=data_dir, seed=seed, n_train=n_train, n_test=n_test, progress=True)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Its order goes by writer; the test part is always the same.
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x = np.rint(bunch.images[order] * (255 / 16)).astype(np.uint8)[..., None]
    y = bunch.target[order].astype(np.int32)
    parts = {"train": slice(_TEST, None), "test": slice(_TEST)}
    arrays = {}
    for (part, rows), count in zip(parts.items(), (n_train, n_test), strict=True):
        if count is not None and count > len(y[rows]):
            raise UserError(f"--n-{part}: digits has {len(y[rows])} images in that part; received {count}")
        arrays |= {f"x_{part}": x[rows][:count], f"y_{part}": y[rows][:count]}
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return Arrays("digits", class_names=tuple("0123456789"), sha256=digest.hexdigest(), **arrays)
