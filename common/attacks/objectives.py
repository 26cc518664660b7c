"""What an attack raises: from the model and the inputs by name, functions x (B, ...) -> value (B,), success (B,)."""

import tensorflow as tf

from common.attacks.logits import compute_dtypes, inference, logits_of
from common.attacks.loop import Inputs, Model, Objective

Tensor = tf.Tensor


def untargeted_ce(model: Model, inputs: Inputs) -> Objective:
    """Cross-entropy of the true class `y` (B,); success: `x` is misclassified (Goodfellow et al. 2015)."""
    logits, y = steep_logits(model), inputs["y"]

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        return _cross_entropy(z, y), _answer(z) != y

    return objective


def targeted_ce(model: Model, inputs: Inputs) -> Objective:
    """Minus the cross-entropy of the class `target` (B,); success: that is predicted (Kurakin et al. 2017)."""
    logits, target = steep_logits(model), inputs["target"]

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        entropy = _cross_entropy(z, target)
        # Of logits that are not numbers the first would be the largest.
        return -entropy, (_answer(z) == target) & ~tf.math.is_nan(entropy)

    return objective


def untargeted_margin(model: Model, inputs: Inputs) -> Objective:
    """The largest logit of another class minus that of the true class `y` (B,) (Carlini & Wagner 2017, V-A, f6).

    Success: another class is predicted, by at least `confidence`, if given. Where cross-entropy saturates, it still has
    a slope.
    """
    logits, y, confidence = logits_of(model), inputs["y"], inputs.get("confidence", 0.0)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        margin = -_lead(z, y)
        return margin, (_answer(z) != y) & (margin >= confidence)

    return objective


def targeted_margin(model: Model, inputs: Inputs) -> Objective:
    """The logit of the class `target` (B,) minus the largest of another (Carlini & Wagner 2017, section V-A, f6).

    Success: `target` is predicted, by at least `confidence`, if given.
    """
    logits, target, confidence = logits_of(model), inputs["target"], inputs.get("confidence", 0.0)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        margin = _lead(z, target)
        return margin, (_answer(z) == target) & (margin >= confidence)

    return objective


def untargeted_dlr(model: Model, inputs: Inputs) -> Objective:
    """Difference of logits ratio: the largest logit of another class minus that of the true class `y` (B,), over the
    distance of the first from the third largest (Croce & Hein 2020, equation 6), which scaled logits do not change.

    Success: another class is predicted. Three classes or more.
    """
    logits, y = steep_logits(model), inputs["y"]

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        first, _, third = tf.unstack(tf.math.top_k(z, 3).values, axis=1)
        return _ratio(-_lead(z, y), first - third), _answer(z) != y

    return objective


def targeted_dlr(model: Model, inputs: Inputs) -> Objective:
    """The logit of the class `target` (B,) minus that of the true class `y` (B,), over the distance of the largest from
    the mean of the third and the fourth (Croce & Hein 2020, equation 7).

    Success: another class than `y` is predicted, whichever. Four classes or more.
    """
    logits, y, target = steep_logits(model), inputs["y"], inputs["target"]

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        first, _, third, fourth = tf.unstack(tf.math.top_k(z, 4).values, axis=1)
        return _ratio(_between(z, target, y), first - (third + fourth) / 2), _answer(z) != y

    return objective


def towards(model: Model, inputs: Inputs) -> Objective:
    """The logit of the class `target` (B,) minus that of the true class `y` (B,); success: another class than `y` is
    predicted, whichever."""
    logits, y, target = logits_of(model), inputs["y"], inputs["target"]

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        return _between(z, target, y), _answer(z) != y

    return objective


def probability_margin(model: Model, inputs: Inputs) -> Objective:
    """The largest probability of another class minus that of the true class `y` (B,) (arXiv 2411.15210, PMA); success:
    another class is predicted. Where the logits lie far apart its slope is steepest of the losses on probabilities, and
    yet none where softmax saturates."""
    logits, y = steep_logits(model), inputs["y"]

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        return -_lead(tf.nn.softmax(z), y), _answer(z) != y

    return objective


def divergence_from(model: Model, inputs: Inputs) -> Objective:
    """Kullback-Leibler divergence of the answer to x from that of the `logits` (B, classes); success: another class is
    predicted (Zhang et al. 2019, TRADES, algorithm 1)."""
    logits = steep_logits(model)
    reference = tf.stop_gradient(inputs["logits"])

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        return divergence(reference, z), _answer(z) != _answer(reference)

    return objective


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(`logits`) || softmax(`other`)) in nats, (B, classes) each -> (B,)."""
    log_p, log_q = tf.nn.log_softmax(logits), tf.nn.log_softmax(other)
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def cosine_to(embed: Model, inputs: Inputs) -> Objective:
    """Cosine similarity of `embed(x)` (B, D) to the `embedding` (B, D); success above `threshold`, by default 1 (MTER,
    feature target)."""
    forward, threshold = inference(embed), inputs.get("threshold", 1.0)
    target = tf.math.l2_normalize(tf.cast(inputs["embedding"], tf.float32), axis=-1)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = tf.cast(forward(x), tf.float32)
        similarity = tf.reduce_sum(tf.math.l2_normalize(embedding, axis=-1) * target, axis=-1)
        return similarity, similarity > threshold

    return objective


def least_likely(model: Model, x: Tensor) -> Tensor:
    """The class of the smallest logit, int32 (B,) (Kurakin et al. 2017, least-likely class)."""
    return tf.argmin(logits_of(model)(x), axis=1, output_type=tf.int32)


def runners_up(model: Model, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The `count` classes of the largest logits beside `y` (B,), the nearest first, all of them if there are fewer:
    int32 (B, count)."""
    z = logits_of(model)(x)
    others = tf.where(tf.one_hot(y, z.shape[1], on_value=True, off_value=False), z.dtype.min, z)
    return tf.math.top_k(others, min(count, z.shape[1] - 1)).indices


def steep_logits(model: Model) -> Model:
    """`logits_of(model)`, for losses of which the gradient's direction alone counts, example by example.

    Where the true class is nearly certain the gradient by the logits is too small for 16-bit floats, and would be zero
    on its way back through a network in half precision: it goes there with a largest entry of 1.
    """
    logits = logits_of(model)
    if "float16" not in compute_dtypes(model):
        return logits

    @tf.custom_gradient
    def steep(z: Tensor):
        return z, lambda slope: tf.math.divide_no_nan(slope, tf.reduce_max(tf.abs(slope), axis=1, keepdims=True))

    return lambda x: steep(logits(x))


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)


def _lead(logits: Tensor, y: Tensor) -> Tensor:
    """The logit of the class `y` minus the largest other one."""
    own = tf.one_hot(y, logits.shape[1], on_value=True, off_value=False)
    others = tf.reduce_max(tf.where(own, logits.dtype.min, logits), axis=1)
    return tf.reduce_sum(tf.where(own, logits, 0.0), axis=1) - others


def _between(logits: Tensor, target: Tensor, y: Tensor) -> Tensor:
    """The logit of the class `target` minus that of the class `y`."""
    difference = tf.one_hot(target, logits.shape[1]) - tf.one_hot(y, logits.shape[1])
    # Where a logit is infinite that of another class must not turn the sum into no number.
    return tf.reduce_sum(tf.where(difference != 0, logits * difference, 0.0), axis=1)


def _ratio(lead: Tensor, spread: Tensor) -> Tensor:
    return lead / (spread + 1e-12)


def _answer(logits: Tensor) -> Tensor:
    return tf.argmax(logits, axis=1, output_type=tf.int32)
