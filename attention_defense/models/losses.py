"""The three losses of AAD, as means over images (arXiv 1811.09831; sums and sizes as in the original code).

With p the softmax, Att the attention map and x' the attacked image:

    L_c = CE(x) + CE(x')
    L_r = -mean (p(x) - p(x hidden))^2 - mean (p(x') - p(x' hidden))^2
    L_p = mean (Att(x) - Att(x'))^2

The original sums L_p over a batch of 50 images of 32 x 32, with maps of sum 1 on 8 x 8 cells; ours have mean 1, so
its L_p is 12.5 times ours. L_c and L_r are means there too.
"""

from typing import NamedTuple

import tensorflow as tf

Tensor = tf.Tensor


class Weights(NamedTuple):
    """Of classification, rectification and preservation; the paper's for CIFAR-10."""

    classification: float = 8.0
    rectification: float = 4.0
    preservation: float = 1.0


# What hidden pixels become: the middle of the box, which is the original's 0 in [-1, 1].
GREY = 0.5


def soft_mask(attention: Tensor, sharpness: float) -> Tensor:
    """How far each pixel is hidden, in [0, 1], from attention of mean 1: above 1/2 where it is above its mean.

    A sigmoid of slope `sharpness`, so that the rectification also moves the map. (The original's sign does not.)
    """
    return tf.sigmoid(sharpness * (attention - 1.0))


def occlude(x: Tensor, mask: Tensor) -> Tensor:
    """Images `x` (B, H, W, C) with the pixels of `mask` (B, H, W) in [0, 1] turned grey."""
    return x + mask[..., None] * (GREY - x)


def rectification(p: Tensor, p_occluded: Tensor) -> Tensor:
    """Minus the mean squared change of the probabilities (B, classes) when what is attended is hidden."""
    return -tf.reduce_mean(tf.square(p - p_occluded))


def preservation(attention: Tensor, attacked: Tensor) -> Tensor:
    """The mean squared difference of the attention (B, H, W) to the image and to the attacked one."""
    return tf.reduce_mean(tf.square(attention - attacked))
