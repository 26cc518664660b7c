"""The graph of a Sequential or functional model: inputs and output of each layer, and the same layers on another input.

A layer's own `input` and `output` belong to the first place where it was ever called. In a Sequential model read from a
file that is not the model's own graph, so everything here starts from the model's outputs.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from common.per_model import PerModel

_flat = PerModel()


class Place(NamedTuple):
    """A use of `layer` in a graph: its Keras input tensors and its output."""

    layer: Any
    inputs: tuple[keras.KerasTensor, ...]
    output: keras.KerasTensor


def has_graph(model: Any) -> bool:
    """Whether `model` knows what goes from layer to layer: a functional model, or a Sequential one that is built."""
    if isinstance(model, keras.Sequential):
        return model.built and getattr(model, "_functional", None) is not None
    return isinstance(model, keras.Model) and hasattr(model, "operations")


def places(model: keras.Model) -> list[Place]:
    """The layers of `model` in the order in which they compute; empty for a model without a graph.

    Left out are input layers, those with several outputs, and those used several times. A nested model is one
    layer.
    """
    found: dict[tuple[int, int], Place | None] = {}
    # By hand: a network may be deeper than Python's stack.
    waiting = [(tensor, False) for tensor in reversed(model.outputs)] if has_graph(model) else []
    first = {id(tensor) for tensor in model.inputs} if waiting else set()
    while waiting:
        tensor, ready = waiting.pop()
        operation, index, _ = tensor._keras_history
        node, key = operation._inbound_nodes[index], (id(operation), index)
        if id(tensor) in first or (not ready and key in found):
            continue
        if not ready:
            found[key] = None
            waiting += [(tensor, True), *((before, False) for before in reversed(node.input_tensors))]
            continue
        # Again, at the end: a dictionary keeps the order of the first time.
        del found[key]
        found[key] = Place(operation, tuple(node.input_tensors), node.outputs[0]) if len(node.outputs) == 1 else None
    counts: dict[int, int] = {}
    for operation, _ in found:
        counts[operation] = counts.get(operation, 0) + 1
    return [place for (operation, _), place in found.items() if place is not None and counts[operation] == 1]


def rewired(model: keras.Model, images: Any, *, nested: bool = False, call: Callable[..., Any] | None = None) -> Any:
    """What `model`, which has a graph and one input, makes of `images`, a Keras tensor or numbers, in the place of
    that: its answer, in its structure. Layers are shared. With `nested`, nested models are taken apart into their
    layers. `call`, layer, *arguments, **options -> output, goes through a layer in another way than by calling it.
    """
    call = call or (_called if nested else _called_plainly)
    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            images = call(layer, images)
        return images
    # What `keras.models.clone_model` does, which would part its graph from a tensor that is no input.
    return model._run_through_graph(images, call_fn=call)


def flat(model: keras.Model) -> keras.Model:
    """`model` without nested models: the layers of those take their places, and share their weights.

    The model itself where there is nothing to take apart, or where it cannot be: without a graph, or where two layers
    are of one name. It is meant for inference: whether a nested model was called in another mode is forgotten.
    """

    def taken_apart() -> keras.Model | None:
        if any(isinstance(place.layer, keras.Model) and has_graph(place.layer) for place in places(model)):
            images = keras.Input(batch_shape=model.inputs[0].shape, dtype=model.inputs[0].dtype)
            # Names that occur twice.
            with contextlib.suppress(ValueError):
                return keras.Model(images, rewired(model, images, nested=True), name=model.name)
        return None

    found = _flat.get(model, "flat", taken_apart)
    return model if found is None else found


def _called_plainly(layer: Any, *arguments: Any, **options: Any) -> Any:
    return layer(*arguments, **options)


def _called(layer: Any, *arguments: Any, **options: Any) -> Any:
    single = len(arguments) == 1 and isinstance(arguments[0], keras.KerasTensor)
    if isinstance(layer, keras.Model) and has_graph(layer) and len(layer.inputs) == 1 and single:
        return rewired(layer, arguments[0], nested=True)
    return layer(*arguments, **options)
