"""How a defence looks to a gradient: what hides slopes is found by measuring, and gone around.

A `View` is a model for attacks to climb on; what they find counts only if the defence itself answers it wrongly.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.attacks import RandomModel, bpda, check_logits, inference, logits_of, value_and_gradient
from common.attacks.logits import compute_dtypes, probabilities
from common.attacks.objectives import untargeted_ce, untargeted_margin
from common.attacks.tensors import finite
from common.models import flat, has_graph, places, rewired

Tensor = tf.Tensor
Model = Callable[[Tensor], Tensor]
Mechanism = Literal["none", "scaled logits", "non-differentiable", "random", "rejecting", "misleading gradients"]

DRAWS = 20
"""Forward passes over which a model that draws is judged."""

# Directions of finite differences, how far they go in each coordinate, and how far from clean examples.
_DIRECTIONS, _STEP, _BESIDE = 20, 1e-4, 0.02
# Below this correlation of differences with slopes, slopes do not tell where a function goes.
_ROUGH = 0.9
# More examples than this without a slope are no chance.
_FEW = 0.01
# Steps of secants, of the spread of what a layer is given: too short ones see no edge, too long ones no shape.
_WIDTHS = (0.1, 0.25, 0.5)


class View(NamedTuple):
    """A `model` to climb on, x (B, ...) -> logits, and what was done to the defence in `words`. `exact`: it answers as
    the defence does, so that an attack may stop where it succeeds. `around`: a part of the defence, flat, -> the same
    with what was done. `learn`: of an imitation, examples (n, ...) -> one that answers them as the defence does too."""

    model: Model
    words: str
    exact: bool = True
    around: Callable[[keras.Model], Model] = inference
    learn: Callable[[np.ndarray], "View"] | None = None


class Slopes(NamedTuple):
    """What the gradient of a model is worth on a few examples.

    `missing`: there is none. `zero`, `flat`: the shares of examples where that of the cross-entropy, and of the margin
    of logits, is zero throughout. `correlation` of finite differences with it, and their relative `error`: None where
    nothing moves, or `half` precision would round them to nothing.
    """

    missing: bool
    zero: float
    flat: float
    correlation: float | None
    error: float | None
    half: bool = False


class Look(NamedTuple):
    """What was seen of a defence: whether two forward passes `differ`, whether it hides `probabilities` that could not
    be cut, its `slopes` and those of the first view, the `views` to attack it on, and the `mechanism` that was found,
    with the layers in which it is, as far as it shows them."""

    differ: bool
    probabilities: bool
    slopes: Slopes
    views: tuple[View, ...]
    mechanism: Mechanism
    layers: tuple[str, ...]


def look(model: Model, x: np.ndarray, y: np.ndarray, *, low: float = 0.0, high: float = 1.0) -> Look:
    """A look at `model`, a Keras classifier or a function of x, on a few of its clean examples `x` float32 (N, ...)
    with labels `y` (N,). What it costs does not depend on N.

    Errors: `ValueError` for an answer that is no vector for each example.
    """
    some, labels = tf.constant(x[:64]), tf.constant(y[:64], tf.int32)
    differ = differs(model, some)
    hidden = _gives_probabilities(model, some)
    base, layers = View(model, "as it is"), ()
    if hidden:
        base = View(_logarithm(model), "the logarithm of its answers")
        dead = not differ and slopes_of(base.model, some, labels, low=low, high=high, compare=False).missing
        if (cut := _without_last(model, some)) is not None:
            base = cut
            if dead:
                # What it hides behind is no softmax.
                layers = (places(flat(model))[-1].layer.name,)
    if differ:
        # Its draws are its own: the seeds say how many, not which.
        own = base.model if isinstance(base.model, RandomModel) else RandomModel(_drawn(logits_of(base.model)))
        slopes = slopes_of(own, some, labels, low=low, high=high, compare=False)
        if not (slopes.missing or slopes.flat > _FEW):
            words = f"the mean of {DRAWS} draws"
            return Look(True, hidden, slopes, (View(own, words),), "random", ())
    slopes = slopes_of(base.model, some, labels, low=low, high=high, compare=not differ)
    rough = slopes.correlation is not None and slopes.correlation < _ROUGH
    if slopes.missing or slopes.flat > _FEW or rough:
        views, layers = _around(base.model, some, differ)
        found = (*views, base) if not slopes.missing else tuple(views)
        return Look(differ, hidden, slopes, found, "random" if differ else "non-differentiable", layers)
    if layers:
        return Look(differ, hidden, slopes, (base,), "non-differentiable", layers)
    scaled = hidden or slopes.zero > _FEW
    return Look(differ, hidden, slopes, (base,), "scaled logits" if scaled else "none", layers)


def differs(model: Model, x: Tensor) -> bool:
    """Whether two forward passes on `x` (B, ...) differ in a single bit: then a model draws."""
    if isinstance(model, RandomModel):
        return True
    first, second = (np.asarray(inference(model)(x)) for _ in range(2))
    return not np.array_equal(first, second, equal_nan=True)


def slopes_of(
    model: Model, x: Tensor, y: Tensor, *, low: float = 0.0, high: float = 1.0, compare: bool = True
) -> Slopes:
    """What gradients of `model` at `x` (B, ...) of the classes `y` (B,) are worth; `compare` them with finite
    differences too, of which half precision would leave nothing."""
    zero = []
    for objective in (untargeted_ce, untargeted_margin):
        try:
            _, _, gradient = value_and_gradient(objective(model, {"y": y}), x)
        except (ValueError, LookupError):
            return Slopes(True, 1.0, 1.0, None, None)
        steep = tf.reshape(finite(gradient), [tf.shape(x)[0], -1])
        zero.append(float(tf.reduce_mean(tf.cast(tf.reduce_all(steep == 0, axis=1), tf.float32))))
    half = not {"bfloat16", "float16"}.isdisjoint(compute_dtypes(model))
    if half or not compare:
        return Slopes(False, *zero, None, None, half)
    count = min(16, len(x))
    margin = untargeted_margin(model, {"y": y[:count]})
    return Slopes(False, *zero, *_compared(lambda x: margin(x)[0], x[:count], high - low, low, high))


def _compared(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    spread: float,
    low: float = -np.inf,
    high: float = np.inf,
) -> tuple[float | None, float | None]:
    """Correlation of finite differences of `function`, x (B, ...) -> (B,), with its gradient, and their relative error,
    over directions of random signs, with steps that are small for values of that `spread`; each example counts the
    same. None and None where nothing moves."""
    rng, found, told, step = np.random.default_rng(0), [], [], _STEP * spread
    # Beside x: where a whole region is of one colour, pooling meets ties, and no slope tells of all directions.
    noise = tf.constant(rng.uniform(-_BESIDE, _BESIDE, x.shape).astype(np.float32)) * spread
    middle = tf.clip_by_value(x + noise, low + step, high - step)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(middle)
        value = function(middle)
    gradient = tape.gradient(value, middle)
    gradient = tf.zeros_like(middle) if gradient is None else finite(tf.convert_to_tensor(gradient))
    for _ in range(_DIRECTIONS):
        signs = tf.constant(rng.choice([-1.0, 1.0], middle.shape).astype(np.float32))
        ahead, behind = function(middle + step * signs), function(middle - step * signs)
        found.append(((ahead - behind) / (2 * step)).numpy())
        told.append(tf.reduce_sum(tf.reshape(gradient * signs, [len(x), -1]), axis=1).numpy())
    found, told = np.stack(found, axis=1).astype(np.float64), np.stack(told, axis=1).astype(np.float64)
    size = np.sqrt((found**2).mean(axis=1) + (told**2).mean(axis=1))
    moving = np.isfinite(size) & (size > 0)
    if not moving.any():
        return None, None
    found, told = (each[moving] / size[moving, None] for each in (found, told))
    # Not centred: a slope that is always the other one's double is no good either, which the error says.
    both = np.sqrt((found**2).sum() * (told**2).sum())
    correlation = float((found * told).sum() / both) if both else 0.0
    return correlation, float(np.sqrt(((found - told) ** 2).sum() / (found**2).sum())) if found.any() else 1.0


def _gives_probabilities(model: Model, x: Tensor) -> bool:
    """Whether a model answers with probabilities that `logits_of` cannot look behind."""
    try:
        check_logits(model, x)
    except ValueError:
        answer = inference(model)(x)
        if answer.shape.rank == 2 and answer.shape[1] > 1 and bool(probabilities(answer)):
            return True
        raise
    return False


def _without_last(model: Model, x: Tensor) -> View | None:
    """`model` up to a last layer that leaves the order of what it is given, on `x` and on noise, as it is."""
    if not (isinstance(model, keras.Model) and has_graph(model)):
        return None
    last = next((place for place in places(flat(model)) if place.output is flat(model).outputs[0]), None)
    if last is None or len(last.inputs) != 1 or last.inputs[0].shape != last.output.shape:
        return None
    before = keras.Model(flat(model).inputs[0], last.inputs[0])
    noise = tf.random.stateless_uniform(tf.shape(x), [0, 0])
    for images in (x, noise):
        given, answer = inference(before)(images), inference(model)(images)
        # Of a saturated answer several may be equal, which is no other order.
        ranked = tf.gather(answer, tf.argsort(given, axis=1), batch_dims=1)
        if bool(tf.reduce_any(ranked[:, 1:] < ranked[:, :-1])):
            return None
    return View(before, f"without its last layer, {last.layer.name}, which keeps the order of what it is given")


def _logarithm(model: Model) -> Model:
    return lambda x: tf.math.log(tf.maximum(tf.cast(inference(model)(x), tf.float32), 1e-37))


def _drawn(logits: Model) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, seeds: logits(x)


def _around(model: Model, x: Tensor, differ: bool) -> tuple[list[View], tuple[str, ...]]:
    """Views of a model whose slopes are none: with secants, or the identity, in the place of those of the layers that
    do it; where that cannot be, an imitation of what follows on them. And the names of those layers."""
    if not (isinstance(model, keras.Model) and has_graph(model)):
        return [], ()
    whole = flat(model)
    rough = _rough(whole, x[:16])
    views = []
    if rough and all(substitute is not None for _, substitute in rough):
        through = {place.layer.name: substitute for place, substitute in rough}

        def around(part: keras.Model) -> Model:
            call = lambda layer, *a, **o: _through(through.get(layer.name), layer, *a, **o)  # noqa: E731
            return lambda x: rewired(part, x, call=call)

        smooth, words = around(whole), f"with other slopes through {', '.join(through)}"
        views.append(View(RandomModel(_drawn(logits_of(smooth))) if differ else smooth, words, around=around))
    elif rough:
        first = rough[0][0]
        if first.inputs[0] is not whole.inputs[0]:
            before = keras.Model(whole.inputs[0], first.inputs[0])
            words = f"an imitation of what comes after {first.layer.name}'s input"
            views.append(_imitating(Imitation(model, before, x), words))
    return views, tuple(place.layer.name for place, _ in rough)


def _through(substitute: Callable | None, layer: Any, *arguments: Any, **options: Any) -> Any:
    if substitute is not None:
        return substitute(arguments[0])
    options.pop("training", None)
    if isinstance(layer, keras.Layer):
        return inference(layer)(*arguments) if not options else layer(*arguments, **options)
    return layer(*arguments, **options)


def _rough(model: keras.Model, x: Tensor) -> list[tuple[Any, Callable | None]]:
    """The places in `model` whose slopes are none or lead elsewhere, each with a function that answers the same and has
    a slope, None where there is none to be had."""
    single = [p for p in places(model) if len(p.inputs) == 1 and len(keras.tree.flatten(p.output)) == 1]
    if not single:
        return []
    given = keras.Model(model.inputs[0], [place.inputs[0] for place in single])(x, training=False)
    found = []
    for place, values in zip(single, keras.tree.flatten(given), strict=True):
        function = inference(place.layer) if isinstance(place.layer, keras.Layer) else place.layer
        if values.dtype == tf.float32 and not _tells(function, values):
            found.append((place, _smooth(function, values)))
    return found


def _tells(function: Model, values: Tensor) -> bool:
    """Whether slopes of a layer tell where it goes from beside `values` (B, ...)."""
    rng = np.random.default_rng(0)
    weights = tf.constant(rng.normal(size=function(values).shape), tf.float32)

    def weighed(values: Tensor) -> Tensor:
        answer = tf.cast(function(values), tf.float32)
        return tf.reduce_sum(tf.reshape(answer * weights, [len(values), -1]), axis=1)

    try:
        correlation, _ = _compared(weighed, values, _spread(values))
    except LookupError:
        # An operation without a gradient.
        return False
    return correlation is not None and correlation >= _ROUGH


def _spread(values: Tensor) -> float:
    return float(tf.math.reduce_std(tf.cast(values, tf.float32))) or 1.0


def _smooth(function: Model, values: Tensor) -> Callable | None:
    """`function` with another slope: its secants, where each output depends on one input, else that of the identity,
    where the shape stays; None where neither can be."""
    answer = function(values)
    if (copies := _elementwise(function, values)) is not None:
        return _by_secants(function, [width * _spread(values) for width in _WIDTHS], copies)
    return bpda(function) if answer.shape == values.shape else None


def _elementwise(function: Model, values: Tensor) -> tuple[int, int] | None:
    """Of a layer each of whose outputs depends on one input, with one or several outputs an input on the last axis: how
    many, and which of the two varies faster there (-1: the outputs of an input, -2: the inputs). None for any other."""
    answer = function(values)
    if answer.shape[1:-1] != values.shape[1:-1] or values.shape.rank < 2 or answer.shape[-1] % values.shape[-1]:
        return None
    copies = answer.shape[-1] // values.shape[-1]
    rng = np.random.default_rng(0)
    moved = rng.random(values.shape) < 0.5
    other = function(values + tf.constant(moved, values.dtype) * _spread(values))
    changed = (other != answer).numpy()
    for axis in (-1, -2):
        sides = (values.shape[-1], copies) if axis == -1 else (copies, values.shape[-1])
        split = changed.reshape(*changed.shape[:-1], *sides).any(axis=axis if axis == -1 else -2)
        if split.any() and not (split & ~moved).any():
            return copies, axis
    return None


def _by_secants(function: Model, widths: Sequence[float], copies: tuple[int, int]) -> Callable:
    many, axis = copies

    @tf.custom_gradient
    def passed(x: Tensor):
        def gradient(slope: Tensor) -> Tensor:
            total = tf.zeros_like(x)
            for width in widths:
                secant = (function(x + width) - function(x - width)) / (2 * width)
                sides = (x.shape[-1], many) if axis == -1 else (many, x.shape[-1])
                each = tf.reshape(slope * secant, [*tf.unstack(tf.shape(x))[:-1], *sides])
                total += tf.reduce_sum(each, axis=axis)
            return total / len(widths)

        return function(x), gradient

    return passed


class Imitation:
    """`before`, the first part of `model`, with a linear read-out that answers as `model` does and has slopes, where
    `model` has none. It is learnt from answers: to `x` (B, ...), to copies of it with noise, and to what attacks on
    the imitation have found (Papernot et al. 2017)."""

    def __init__(self, model: keras.Model, before: keras.Model, x: Tensor, *, copies: int = 32, reach: float = 0.1):
        self.model, self.before = model, before
        self.points, self.answers = [], []
        rng = np.random.default_rng(0)
        for number in range(copies + 1):
            noise = reach * number / copies * rng.choice([-1.0, 1.0], x.shape)
            self.ask(np.clip(x.numpy() + noise, 0, 1).astype(np.float32))

    def ask(self, x: np.ndarray) -> None:
        """Note what the model answers to `x` (n, ...)."""
        for first in range(0, len(x), 256):
            some = tf.constant(x[first : first + 256])
            self.points.append(tf.reshape(inference(self.before)(some), [len(some), -1]).numpy())
            self.answers.append(np.argmax(inference(self.model)(some), axis=1))

    def fit(self) -> Model:
        """The imitation, x -> logits, of all answers so far."""
        # Here, for it takes seconds that no script's --help should take.
        from sklearn.linear_model import LogisticRegression

        points, answers = np.concatenate(self.points), np.concatenate(self.answers)
        centre, spread = points.mean(axis=0), points.std(axis=0) + 1e-6
        classes = int(self.model.output_shape[-1])
        weights, bias = np.zeros((points.shape[1], classes), np.float32), np.full(classes, -1e3, np.float32)
        if len(known := np.unique(answers)) > 1:
            fitted = LogisticRegression(max_iter=300).fit((points - centre) / spread, answers)
            rows, shift = fitted.coef_, fitted.intercept_
            if len(known) == 2:
                rows, shift = np.concatenate([-rows, rows]), np.concatenate([-shift, shift])
            weights[:, known] = (rows / spread).T
            bias[known] = shift - (rows / spread) @ centre
        before, weights, bias = self.before, tf.constant(weights), tf.constant(bias)

        def answer(x: Tensor) -> Tensor:
            features = tf.cast(inference(before)(x), tf.float32)
            return tf.reshape(features, [tf.shape(x)[0], len(weights)]) @ weights + bias

        return answer


def _imitating(pupil: Imitation, words: str) -> View:
    def learn(x: np.ndarray) -> View:
        pupil.ask(x)
        return _imitating(pupil, words)

    return View(pupil.fit(), words, exact=False, learn=learn)
