"""A model cut in two, where something looks at what goes from one half into the other."""

from typing import Any

import keras

from common.errors import UserError, one_line
from common.per_model import PerModel

_halves = PerModel()


def split_at(model: keras.Model, tensor: Any) -> tuple[keras.Model, keras.Model]:
    """`model` up to the Keras tensor `tensor`, and from there on; both share its weights.

    Errors: `UserError` where something passes `tensor` by, such as a shortcut.
    """

    def cut() -> tuple[keras.Model, keras.Model]:
        try:
            return keras.Model(model.inputs[0], tensor), keras.Model(tensor, model.outputs[0])
        except ValueError as error:
            raise UserError(
                f"{model.name}: cannot be cut at {tensor.name}, something passes it by ({one_line(error)}); choose"
                " another layer"
            ) from error

    return _halves.get(model, tensor.name, cut)
