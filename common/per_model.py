"""What was made for a model and is good as long as that is what it was: compiled functions, halves, looks at it."""

import functools
import itertools
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

State = tuple[Hashable, ...]

# What Keras keeps in any layer or model for its own purposes, and what compiling and fitting a model add to that.
_BOOKKEEPING = (
    *("_functional", "_compile_config", "_compile_loss", "_compile_metrics", "_compiled_trainable_state"),
    *("_compute_loss_has_training_arg", "_distribute_strategy", "_eval_epoch_iterator", "_initial_epoch"),
    *("_jit_compile", "_loss_tracker", "_run_eagerly", "compiled", "history", "loss", "name", "optimizer"),
    *("predict_function", "steps_per_execution", "stop_evaluating", "stop_predicting", "stop_training"),
    *("test_function", "train_function"),
)
_KEPT = ("_trainable", "_trainable_variables", "_non_trainable_variables", "_dtype_policy")
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
# Arrays of at most so many bytes are compared by their numbers: a graph holds them as constants.
_SMALL = 4096

_numbers = itertools.count()
_tokens: "dict[int, tuple[weakref.ref, int]]" = {}
# By a layer's token: what its own calls write down, such as how many there were.
_written: dict[int, frozenset[str]] = {}


class PerModel:
    """Values by model and key. They are made again once the model's layers, variables or properties are others than
    when they were made, and forgotten with the model."""

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[Any, tuple[State, dict]] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, model: Any) -> dict:
        return self._kept[model][1]

    def get(self, model: Any, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of `key`, by `make` if there is none for `model` as it now is."""
        before = state(model)
        known, values = self._kept.get(model, (None, {}))
        if known == before and key in values:
            return values[key]
        properties = _properties(model)
        value = make()
        _learn(properties)
        # A model that was never called before has its weights from now on.
        now = state(model)
        known, values = self._kept.get(model, (None, {}))
        if known != now:
            values = {}
        values[key] = value
        self._kept[model] = now, values
        return value


def state(model: Any) -> State:
    """What a traced function of `model` depends on, apart from the values of variables: equal as long as the model
    has the same layers, variables and properties. Numbers and tensors that its own calls write down count as values.

    Of a function that is no Keras model those are the models that it holds: in its closure, in its module, as arguments
    of a partial or as what a method belongs to.
    """
    found: list[Hashable] = []
    ignored = _ignored()
    for layer in layers_of(model):
        token = _token(layer)
        found.append(token)
        skipped = ignored | _written[token] if token in _written else ignored
        # Before every attack on every batch: few calls.
        for name, value in vars(layer).items():
            if name not in skipped:
                found.append(value if type(value) in _PLAIN else _value(value))
    return tuple(found)


def _properties(model: Any) -> list[tuple[keras.Layer, dict[str, Any]]]:
    """The layers of `model` that are built, each with its properties. Building another sets them, once."""
    return [(layer, dict(vars(layer))) for layer in layers_of(model) if layer.built]


def _learn(before: list[tuple[keras.Layer, dict[str, Any]]]) -> None:
    """Note what calls have written since `before`: a counter is no reason to compile again."""
    ignored = _ignored()
    for layer, old in before:
        names = {
            name
            for name, value in vars(layer).items()
            if name not in ignored and value is not old.get(name) and _is_note(value) and _is_note(old.get(name))
        }
        if names:
            token = _token(layer)
            _written[token] = _written.get(token, frozenset()) | names


def _is_note(value: Any) -> bool:
    kinds = int | float | np.generic | tf.Tensor | keras.KerasTensor | None
    return isinstance(value, kinds) and not isinstance(value, bool)


def layers_of(model: Any) -> Iterator[keras.Layer]:
    """All layers of `model`, nested ones too, or of the models that a function holds."""
    for part in _models(model, set()):
        yield from part._flatten_layers()


def _models(thing: Any, seen: set[int]) -> Iterator[keras.Layer]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, keras.Layer):
        yield thing
        return
    for held in _held(thing):
        if isinstance(held, keras.Layer | functools.partial | types.FunctionType | types.MethodType):
            yield from _models(held, seen)


def _held(thing: Any) -> list[Any]:
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__, *getattr(thing.__self__, "__dict__", {}).values()]
    if isinstance(thing, types.FunctionType):
        cells = [_content(cell) for cell in thing.__closure__ or ()]
        outside = [thing.__globals__.get(name) for name in thing.__code__.co_names]
        return cells + [value for value in outside if isinstance(value, keras.Layer)]
    return list(getattr(thing, "__dict__", {}).values())


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


@functools.cache
def _ignored() -> frozenset[str]:
    known = vars(keras.layers.Layer()).keys() | vars(keras.Sequential()).keys()
    inputs = keras.Input((1,))
    return frozenset((known | vars(keras.Model(inputs, inputs)).keys()).union(_BOOKKEEPING).difference(_KEPT))


def _value(value: Any, depth: int = 3) -> Hashable:
    """Something equal to that of another value only if a traced function could not tell the two apart."""
    if type(value) in _PLAIN:
        return value
    if depth and isinstance(value, list | tuple):
        return tuple([_value(item, depth - 1) for item in value])
    if depth and isinstance(value, dict):
        return tuple([(_value(key, 0), _value(item, depth - 1)) for key, item in value.items()])
    if isinstance(value, np.generic):
        return value.dtype.str, value.tobytes()
    if isinstance(value, np.ndarray) and value.nbytes <= _SMALL and value.dtype != object:
        return value.shape, value.dtype.str, value.tobytes()
    return _token(value)


def _token(thing: Any) -> int:
    """A number for an object, not held by it, that no other object has at any time: an address may be used again."""
    known = _tokens.get(id(thing))
    if known is not None and known[0]() is thing:
        return known[1]
    number = next(_numbers)
    try:
        place = id(thing)
        _tokens[place] = weakref.ref(thing, lambda gone: _forget(place, gone)), number
    except TypeError:  # such as a set; it has no better name than its address
        return id(thing)
    return number


def _forget(place: int, gone: weakref.ref) -> None:
    if _tokens.get(place, (None,))[0] is gone:
        _written.pop(_tokens.pop(place)[1], None)
