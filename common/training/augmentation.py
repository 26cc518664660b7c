"""Random changes to batches of training images: functions images (B, H, W, C), seed (2,) -> images of that shape."""

import math
from collections.abc import Callable

import tensorflow as tf

Tensor = tf.Tensor
Augment = Callable[[Tensor, Tensor], Tensor]


def crop_and_flip(padding: int = 4, flip: bool = True) -> Augment:
    """A random window of the image padded with `padding` zeros a side, mirrored half the time."""

    def augment(images: Tensor, seed: Tensor) -> Tensor:
        shape = tf.shape(images)
        batch, height, width = shape[0], shape[1], shape[2]
        shifts = tf.random.stateless_uniform([2, batch, 1], seed, 0, 2 * padding + 1, tf.int32)
        rows, columns = shifts[0] + tf.range(height), shifts[1] + tf.range(width)
        if flip:
            mirrored = tf.random.stateless_uniform([batch, 1], tf.random.fold_in(seed, 1), 0, 2, tf.int32) == 1
            columns = tf.where(mirrored, columns[:, ::-1], columns)
        padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
        cropped = tf.gather(tf.gather(padded, rows, batch_dims=1), columns, axis=2, batch_dims=1)
        return tf.ensure_shape(cropped, images.shape)

    return augment


def jitter_and_rotate(strength: float = 0.25, degrees: float = 2.0) -> Augment:
    """Brightness, contrast and saturation scaled by up to 1 +- `strength`, and a turn of up to +-`degrees`."""

    def augment(images: Tensor, seed: Tensor) -> Tensor:
        x = tf.cast(images, tf.float32)
        batch = tf.shape(x)[0]
        scale = tf.random.stateless_uniform([3, batch, 1, 1, 1], seed, 1 - strength, 1 + strength)
        top = 255.0 if images.dtype == tf.uint8 else 1.0
        x = tf.clip_by_value(x * scale[0], 0.0, top)
        grey = tf.reduce_mean(x, axis=-1, keepdims=True)
        x = tf.clip_by_value(_blend(x, tf.reduce_mean(grey, axis=[1, 2], keepdims=True), scale[1]), 0.0, top)
        x = tf.clip_by_value(_blend(x, tf.reduce_mean(x, axis=-1, keepdims=True), scale[2]), 0.0, top)
        radians = math.radians(degrees)
        x = _rotate(x, tf.random.stateless_uniform([batch], tf.random.fold_in(seed, 1), -radians, radians))
        return tf.cast(tf.round(x), tf.uint8) if images.dtype == tf.uint8 else x

    return augment


def chain(*parts: Augment) -> Augment:
    """One after another, each with a seed of its own."""

    def augment(images: Tensor, seed: Tensor) -> Tensor:
        for place, part in enumerate(parts):
            images = part(images, tf.random.fold_in(seed, place))
        return images

    return augment


def _blend(x: Tensor, towards: Tensor, keep: Tensor) -> Tensor:
    return towards + keep * (x - towards)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    height, width = tf.cast(tf.shape(x)[1], tf.float32), tf.cast(tf.shape(x)[2], tf.float32)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
    shift_x = centre_x - cos * centre_x + sin * centre_y
    shift_y = centre_y - sin * centre_x - cos * centre_y
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=x,
        transforms=tf.stack([cos, -sin, shift_x, sin, cos, shift_y, zero, zero], axis=1),
        output_shape=tf.shape(x)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
    )
