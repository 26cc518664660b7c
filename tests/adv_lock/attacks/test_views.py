"""What a lock may be crafted against, beside what really does it."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from adv_lock.attacks import views
from adv_lock.attacks.targeted import targeted_attack
from common.models import build


def pictures(side=(32, 32), count=6, channels=3, seed=0):
    """Smooth ones with some noise, as photographs are, uint8."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = rng.integers(20, 236, (5, 5, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize(side[::-1], Image.BICUBIC), int) + rng.normal(
            0, 6, (*side, 3)
        )
        found.append(image.clip(0, 255).astype(np.uint8)[..., :channels])
    return np.stack(found)


def stored(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)


@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize(("side", "channels"), [((32, 32), 3), ((37, 50), 3), ((20, 24), 1)])
def test_jpeg_is_what_pillow_stores(quality, side, channels):
    images = pictures(side, channels=channels)
    found = np.asarray(views.jpeg(tf.constant(images / 255.0, tf.float32), quality)) * 255
    np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
    expected = np.stack([stored(image, quality) for image in images])
    assert np.abs(found - expected).mean() <= 1.5
    # Far nearer to it than to the picture before.
    assert np.abs(found - expected).mean() < 0.5 * np.abs(found - images.astype(float)).mean()


@pytest.mark.parametrize("name", [*views.VIEWS, "soft_jpeg"])
def test_gradients_are_those_of_differences(name):
    """In a random direction; a rounding has none, and passes on that of its argument."""
    view = (lambda x: views.jpeg(x, rounded=False)) if name == "soft_jpeg" else views.VIEWS[name]
    rng = np.random.default_rng(1)
    x = tf.constant(0.3 + 0.4 * pictures((16, 16), 2) / 255.0, tf.float32)
    facing = tf.constant(rng.normal(size=x.shape), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(view(x) * facing)
    slope = tape.gradient(total, x)
    smooth = (lambda x: views.jpeg(x, rounded=False)) if name == "jpeg" else view
    along = tf.constant(rng.normal(size=x.shape), tf.float32)
    ends = [float(tf.reduce_sum(tf.cast(smooth(x + sign * 0.02 * along) * facing, tf.float64))) for sign in (1, -1)]
    assert float(tf.reduce_sum(slope * along)) == pytest.approx((ends[0] - ends[1]) / 0.04, rel=0.02, abs=0.05)


def test_grey_blur_and_resize():
    images = tf.constant(pictures((18, 23), 3) / 255.0, tf.float32)
    found = {name: view(images).numpy() for name, view in views.VIEWS.items()}
    assert all(of.shape == images.shape for of in found.values())
    assert np.ptp(found["grey"], axis=-1).max() < 1e-6
    np.testing.assert_allclose(found["grey"][..., 0], images.numpy() @ [0.299, 0.587, 0.114], atol=1e-6)
    flat = tf.fill([1, 9, 11, 3], 0.4)
    for name in ("blur", "resize", "grey"):
        np.testing.assert_allclose(views.VIEWS[name](flat), flat, atol=1e-6)
    rough = [float(tf.reduce_mean(tf.image.total_variation(tf.constant(found[name])))) for name in ("blur", "resize")]
    assert max(rough) < 0.9 * float(tf.reduce_mean(tf.image.total_variation(images)))
    np.testing.assert_array_equal(views.grey(images[..., :1]), images[..., :1])


def test_a_lock_crafted_through_views_is_seen_through_them():
    """The loss through JPEG and grey together is lower than without; within the same ball, with another fingerprint."""
    rng = np.random.default_rng(0)
    base = build("small_cnn", (32, 32, 3), 4, seed=1)
    images, target = pictures(count=8), np.arange(8) % 4
    # Untrained normalisation makes such a network nearly linear; some noise in its weights does not.
    base.set_weights([w + rng.normal(0, 0.1, w.shape) * (w.ndim > 1) for w in base.get_weights()])
    settings = {"eps": 1.5, "alpha": 0.3, "steps": 10}
    attacks = {names: targeted_attack(base, **settings, views=names) for names in ((), ("jpeg", "grey"))}
    x = tf.constant(images / 255.0, tf.float32)
    through = {}
    for names, attack in attacks.items():
        shift = attack.perturb(images, target).astype(np.float32)
        assert (np.sqrt(np.square(shift).sum(axis=(1, 2, 3))) < 1.501).all()
        through[names] = [
            tf.nn.sparse_softmax_cross_entropy_with_logits(target, base(view(x + shift), training=False)).numpy()
            for view in (tf.identity, views.jpeg, views.grey)
        ]
    # On the mean of what it was crafted through, image by image.
    gain = np.mean(through[()], axis=0) - np.mean(through["jpeg", "grey"], axis=0)
    assert (gain > 0).all()
    assert attacks[()].fingerprint() != attacks["jpeg", "grey"].fingerprint()
