"""Seeded colour portraits: stylised faces of people who keep their features under pose, light, mien and clutter.

They replace photographs of people where none are available. No real person is depicted.

The difficulty was fixed once, on clean verification alone: people 0 to 99 of seed 0 train with 20 images each, and
all 9,500 pairs of images of one person and as many of two, drawn from 20 images each of people 100 to 149, are told
apart by a cosine and its best threshold. A CNN of four blocks (3 x 3 convolutions of 32, 64, 96 and 128 filters, each
with batch normalisation, ReLU and 2 x 2 max-pooling, then an embedding of 64 with batch normalisation and cosine
softmax of scale 16; 0.27 million weights), trained for 8 epochs of batches of 64 with Adam (rate 0.004 down to 0), is
right on 0.914 and 0.906 of the pairs for two seeds, and accepts 0.55 and 0.52 of the true pairs at a false acceptance
rate of 0.01. The app's `small` network with an embedding of 128 and softmax, after 10 such epochs, is right on 0.954
and 0.955 and accepts 0.79 and 0.78. The correlation of the images is right on 0.62 of the pairs.

Portraits are the same bits on the same machine; another CPU may round a sine differently and move single values by one.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from common.errors import UserError

# Rows drawn at once. It bounds the memory and keeps a block in the processor's cache, and is no part of the data set.
BLOCK = 32

# The tables are the knobs of how hard it is to tell people apart. All values are drawn uniformly between two bounds.
# Lengths are in halves of an image's side unless a comment says otherwise, y points down, angles are in radians, hues
# and what is called light or dark lie in [0, 1], and the rest are strengths.

# What a person keeps.
IDENTITY = {
    # Half width and half height of the head; how it narrows (squares, below 0) to the chin and to the crown.
    "width": (0.42, 0.57),
    "height": (0.61, 0.76),
    "jaw": (-0.25, 0.55),
    "crown": (-0.15, 0.15),
    # From fair to dark, and from sallow to ruddy.
    "tone": (0.0, 1.0),
    "ruddy": (-1.0, 1.0),
    "hair_light": (0.0, 1.0),
    "hair_warm": (0.0, 1.0),
    "hair_grey": (-2.0, 1.0),
    # How far hair stands off at the sides and on top, and how it curls.
    "hair_side": (0.0, 0.12),
    "hair_top": (0.01, 0.16),
    "curl": (-0.02, 0.035),
    # In half heights of the head: how far down hair reaches at the sides, and how far up the hairline lies.
    "hair_length": (-0.5, 1.5),
    "hairline": (0.45, 0.95),
    # How the hairline bends down (up, below 0) to the temples, how it leans, and how far hair at the sides comes
    # forward from the ear (0) to the nose (1).
    "hairline_bend": (-0.35, 0.5),
    "hairline_lean": (-0.35, 0.35),
    "hair_front": (0.15, 0.5),
    # The middles of the eyes, half their width and opening, how much their outer ends are raised.
    "eye_apart": (0.16, 0.26),
    "eye_up": (0.05, 0.16),
    "eye_width": (0.08, 0.135),
    "eye_open": (0.03, 0.066),
    "eye_slant": (-0.28, 0.32),
    "iris_hue": (0.0, 1.0),
    "iris_light": (0.1, 0.85),
    "lashes": (0.008, 0.022),
    "socket": (0.0, 0.3),
    # Brows: how far above the eye, half their thickness, how much their outer ends are raised, bow.
    "brow_up": (0.08, 0.155),
    "brow_thick": (0.011, 0.037),
    "brow_angle": (-0.28, 0.32),
    "brow_bow": (0.0, 0.05),
    "brow_dark": (0.35, 0.9),
    # From the eyes to the tip, half the width of the nose, and from its tip to the mouth.
    "nose_long": (0.18, 0.34),
    "nose_wide": (0.055, 0.13),
    "nose_relief": (0.3, 0.8),
    "mouth_down": (0.1, 0.19),
    "mouth_wide": (0.11, 0.23),
    "lip_upper": (0.01, 0.048),
    "lip_lower": (0.018, 0.064),
    "lip_red": (0.1, 0.7),
    "cheeks": (-0.15, 0.3),
    "ear_size": (0.08, 0.16),
    "ear_out": (-0.04, 0.06),
    # None, and none of the next, below 0; and how far the beard climbs above the mouth.
    "beard": (-1.2, 0.95),
    "moustache": (-1.2, 0.95),
    "beard_up": (0.0, 0.25),
    "mole": (-0.8, 0.9),
    "mole_x": (-0.3, 0.3),
    "mole_y": (0.05, 0.45),
    # In which share of the images glasses are worn; half their width and height, from round to square.
    "glasses": (-1.0, 1.0),
    "glasses_wide": (0.115, 0.175),
    "glasses_high": (0.08, 0.14),
    "glasses_square": (0.0, 1.0),
    "glasses_dark": (0.0, 1.0),
}

# What changes from image to image.
VIEW = {
    "yaw": (-0.28, 0.28),
    "pitch": (-0.13, 0.13),
    "roll": (-0.11, 0.11),
    "scale": (0.92, 1.08),
    "shift_x": (-0.06, 0.06),
    "shift_y": (-0.06, 0.06),
    # Where the light comes from (from the right and from above, over 0) and how much it models; the camera's answer.
    "light_x": (-0.8, 0.8),
    "light_y": (-0.3, 0.8),
    "light": (0.1, 0.5),
    "warmth": (-0.05, 0.05),
    "exposure": (-0.16, 0.12),
    "contrast": (0.85, 1.1),
    "blur": (0.0, 1.0),
    "noise": (0.005, 0.025),
    "grain": (0.0, 1.0),
    # How much the mouth's corners are raised and how far it opens (closed, below 0); the share of the eyes' opening.
    "smile": (-0.05, 0.09),
    "mouth_open": (-0.08, 0.07),
    "brow_raise": (-0.02, 0.035),
    "eyes": (0.6, 1.15),
    "gaze_x": (-0.035, 0.035),
    "gaze_y": (-0.012, 0.012),
    # Hair differs from image to image, and glasses are not always worn.
    "hair_up": (-0.03, 0.04),
    "fringe": (-0.06, 0.06),
    "hair_phase": (0.0, 2 * np.pi),
    "without_glasses": (0.0, 1.0),
    "shirt_hue": (0.0, 1.0),
    "shirt_saturation": (0.0, 0.8),
    "shirt_light": (0.1, 0.95),
    "shirt_neck": (0.0, 0.2),
    # The background's ramp from one colour to another.
    "back_hue": (0.0, 1.0),
    "back_saturation": (0.0, 0.6),
    "back_light": (0.15, 0.95),
    "back_other_hue": (-0.3, 0.3),
    "back_other_light": (-0.5, 0.5),
    "back_angle": (0.0, 2 * np.pi),
}

# Each of the bars on the background: its middle, direction, half length and half width.
BARS = 3
BAR = {
    "x": (-1.1, 1.1),
    "y": (-1.1, 1.1),
    "angle": (0.0, np.pi),
    "long": (0.1, 0.9),
    "wide": (0.02, 0.25),
    "hue": (0.0, 1.0),
    "light": (0.1, 0.95),
}

# A bar before the face, in this share of the images.
COVERED = 0.12
COVER = BAR | {"x": (-0.7, 0.7), "y": (-0.2, 0.9), "long": (0.2, 0.5), "wide": (0.08, 0.22), "absent": (0.0, 1.0)}

_OF_A_VIEW = (VIEW, *[BAR] * BARS, COVER)

# Normal numbers, of which every image takes its sensor noise from a place of its own: no image needs a generator.
_GRAIN = 1 << 20

# Colours through which a parameter from 0 to 1 leads.
_SKIN = np.array([[0.97, 0.84, 0.76], [0.87, 0.68, 0.54], [0.66, 0.46, 0.33], [0.45, 0.30, 0.22], [0.33, 0.22, 0.17]])
_COOL_HAIR = np.array([[0.07, 0.06, 0.07], [0.22, 0.16, 0.12], [0.50, 0.40, 0.28], [0.85, 0.76, 0.56]])
_WARM_HAIR = np.array([[0.09, 0.05, 0.04], [0.30, 0.14, 0.07], [0.62, 0.28, 0.12], [0.88, 0.62, 0.30]])
_IRIS = np.array([[0.25, 0.13, 0.06], [0.45, 0.28, 0.12], [0.35, 0.45, 0.25], [0.30, 0.50, 0.75], [0.50, 0.58, 0.65]])
_FRAME = np.array([[0.70, 0.50, 0.40], [0.05, 0.05, 0.07]])
_RUDDY = np.array([0.03, -0.04, -0.06], np.float32)[:, None, None, None]
_BLUSH = np.array([0.40, -0.20, -0.13], np.float32)[:, None, None, None]
_LIPS = np.array([0.75, 0.25, 0.28], np.float32)[:, None, None, None]


class Portraits(NamedTuple):
    """`images` uint8 (N, size, size, 3); `person` int32 (N,), ascending."""

    images: np.ndarray
    person: np.ndarray


class _Face(NamedTuple):
    """The plane of the face as seen from before it: `u`, `v` (B, H, W) run from the head's middle to the right and
    down, `side` is |u|, and `pixel` (B, 1, 1) is a pixel's side. Colours `skin` and `hair` (3, B, 1, 1)."""

    u: np.ndarray
    v: np.ndarray
    side: np.ndarray
    pixel: np.ndarray
    skin: np.ndarray
    hair: np.ndarray


def portraits(people: int, per_person: int, *, seed: int, size: int = 48, first: int = 0) -> Portraits:
    """Draw `per_person` portraits of `size` x `size` pixels of each of the people `first` to `first + people - 1`.

    Person k depends on `(seed, k)` alone, and image j of person k on `(seed, k, j)` and `size` alone: more people or
    images only append, and people of disjoint ranges are different.

    Errors: `UserError` for `people` or `per_person` below 1, a negative `seed` or `first`, `size` below 16.
    """
    given = (("people", people, 1), ("per_person", per_person, 1), ("seed", seed, 0), ("size", size, 16))
    for field, value, least in (*given, ("first", first, 0)):
        if value < least:
            raise UserError(f"portraits: {field}={value}; expected {least} or more")
    person = np.arange(first, first + people)
    identities, views = _identities(seed, person), _views(seed, person, per_person)
    grain = np.random.default_rng(np.random.SeedSequence(seed)).standard_normal(_GRAIN + 3 * size**2, np.float32)
    images = np.empty((people * per_person, size, size, 3), np.uint8)
    for start in range(0, len(images), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(images)))
        images[rows] = _render(identities[rows // per_person], views[rows], grain, size)
    return Portraits(images, np.repeat(person, per_person).astype(np.int32))


def _identities(seed: int, person: np.ndarray) -> np.ndarray:
    """Shares float32 (people, parameters) of the way between the bounds in `IDENTITY`."""
    sources = (np.random.SeedSequence(seed, spawn_key=(int(number), 0)) for number in person)
    return np.stack([np.random.default_rng(source).random(len(IDENTITY), np.float32) for source in sources])


def _views(seed: int, person: np.ndarray, per_person: int) -> np.ndarray:
    """Shares float32 (people * per_person, parameters) of the way between the bounds in `_OF_A_VIEW`."""
    columns = sum(map(len, _OF_A_VIEW))
    sources = (np.random.SeedSequence(seed, spawn_key=(int(number), 1)) for number in person)
    return np.concatenate(
        [np.random.default_rng(source).random((per_person, columns), np.float32) for source in sources]
    )


def _named(table: dict[str, tuple[float, float]], shares: np.ndarray) -> SimpleNamespace:
    """The parameters of `table` by name, each (B, 1, 1), from `shares` (B, parameters)."""
    low, high = np.array(list(table.values()), np.float32).T
    values = (low + shares * (high - low))[..., None, None]
    return SimpleNamespace(**{name: values[:, column] for column, name in enumerate(table)})


def _render(identities: np.ndarray, views: np.ndarray, grain: np.ndarray, size: int) -> np.ndarray:
    """Images uint8 (B, size, size, 3) of the shares `identities` and `views` (B, parameters).

    On the way there images are (3, B, H, W): arrays whose last axis is short are slow.
    """
    who = _named(IDENTITY, identities)
    ends = np.cumsum([len(table) for table in _OF_A_VIEW])[:-1]
    view, *bars, cover = map(_named, _OF_A_VIEW, np.split(views, ends, axis=1))
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y, pixel = axis[None, None, :], axis[None, :, None], np.float32(2 / size)

    image = _background(view, x, y)
    for bar in bars:
        _paint(image, 0.8 * _bar(bar, x, y, pixel), _colour(bar.hue, np.float32(0.4), bar.light))
    x, y = _turned((x - view.shift_x) / view.scale, (y - view.shift_y) / view.scale, view.roll)
    pixel = pixel / view.scale
    shown, figure = _figure(who, view, x, y, pixel)
    _paint(image, shown, figure)
    present = cover.absent < COVERED
    _paint(image, present * _bar(cover, x, y, pixel), _colour(cover.hue, np.float32(0.5), cover.light))
    return _camera(view, image, grain)


def _background(view: SimpleNamespace, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    near = _colour(view.back_hue, view.back_saturation, view.back_light)
    light = (view.back_light + view.back_other_light).clip(0, 1)
    far = _colour(view.back_hue + view.back_other_hue, view.back_saturation, light)
    ramp = (0.5 + 0.5 * (np.cos(view.back_angle) * x + np.sin(view.back_angle) * y)).clip(0, 1)
    return near + ramp * (far - near)


def _bar(bar: SimpleNamespace, x: np.ndarray, y: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    along, across = _turned(x - bar.x, y - bar.y, bar.angle)
    return _cover(_length((np.abs(along) - bar.long).clip(0), across) - bar.wide, pixel)


def _figure(
    who: SimpleNamespace, view: SimpleNamespace, x: np.ndarray, y: np.ndarray, pixel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cover (B, H, W) and lit colours (3, B, H, W) of head, hair, neck and shirt. In `x`, `y` (B, H, W) the head is
    upright and its middle is at 0."""
    w, h, aside = who.width, who.height, np.abs(x)
    yaw, pitch = np.sin(view.yaw), np.sin(view.pitch)

    # The head is an ellipsoid that narrows, of which p and q in [-1, 1] are what the camera sees; the chin of a turned
    # head goes further than its crown. `near` is how far the surface comes to the camera.
    q = y / h
    p = (x - 0.12 * yaw * q) / w * (1 + q * q * np.where(q > 0, who.jaw, who.crown))
    reach = _length(p, q)
    near = np.sqrt((1 - reach * reach).clip(0))
    head = _cover((reach - 1) * w, pixel)
    # Turning back every point of the surface is all that pose takes: features are drawn on a face seen from before it.
    front = p * yaw + near * np.cos(view.yaw)
    u, v = (p * np.cos(view.yaw) - near * yaw) * w, (q * np.cos(view.pitch) - front * pitch) * h
    skin = _between(_SKIN, who.tone) * (1 + who.ruddy * _RUDDY)
    hair = _hair(who)

    # Behind the head: long hair, neck, shirt and ears.
    curl = who.curl.clip(0) * np.sin(23 * x + view.hair_phase) * np.sin(19 * y - view.hair_phase)
    crown = (_length(x / (w + who.hair_side), y / (h + who.hair_top + view.hair_up)) - 1) * w
    crown = np.where(y < 0, crown, aside - w - who.hair_side) + curl
    long = _cover(np.maximum(crown, y - who.hair_length * h + 0.8 * x * x), pixel)
    neck = _cover(np.maximum(aside - 0.62 * w, -y), pixel)
    collar = 0.95 * h + 0.1 * aside + 0.25 * x * x + (view.shirt_neck - 0.5 * aside).clip(0)
    shirt = _cover(np.maximum(collar - y, aside - 0.95), pixel)
    out = np.abs(x + 0.1 * yaw) - 0.98 * w - who.ear_out
    ears = _cover(_ellipse(out, y - 0.02 - 0.1 * pitch, 0.5 * who.ear_size, who.ear_size), pixel)
    figure = np.empty((3, *u.shape), np.float32)
    figure[:] = 0.55 * hair
    _paint(figure, neck, 0.72 * skin)
    _paint(figure, shirt, _colour(view.shirt_hue, view.shirt_saturation, view.shirt_light))
    _paint(figure, ears, 0.85 * skin)

    face = _Face(u, v, np.abs(u), pixel, skin, hair)
    _paint(figure, head, _features(who, view, face))

    above = v + (who.hairline + view.fringe) * h - who.hairline_bend * u * u / w - who.hairline_lean * u
    beside = np.maximum((front - who.hair_front) * w, y - who.hair_length * h)
    cap = _cover(crown, pixel) * _cover(np.minimum(above, beside) + curl, pixel)
    strands = 1 + 0.1 * np.sin(9 * u / w + 5 * v + view.hair_phase) + 4 * curl
    _paint(figure, cap, hair * strands)
    _glasses(who, view, figure, face, head)

    facing = (p * view.light_x - q * view.light_y + near) / np.sqrt(1 + view.light_x**2 + view.light_y**2)
    flat = 0.5 + 0.2 * (x * view.light_x - y * view.light_y)
    light = 1 + view.light * (flat + head * (facing - flat) - 0.75)
    shown = np.maximum.reduce([long, neck, shirt, ears, head, cap])
    return shown, figure * light


def _hair(who: SimpleNamespace) -> np.ndarray:
    cool, warm = _between(_COOL_HAIR, who.hair_light), _between(_WARM_HAIR, who.hair_light)
    hair = cool + who.hair_warm * (warm - cool)
    return hair + who.hair_grey.clip(0) * (0.35 + 0.5 * who.hair_light - hair)


def _features(who: SimpleNamespace, view: SimpleNamespace, face: _Face) -> np.ndarray:
    """The bare face (3, B, H, W), unlit but for its nose, which casts light and shade at its sides."""
    u, v, side, pixel, skin, hair = face
    below = v + who.eye_up
    tip = below - who.nose_long
    half = who.nose_wide * (0.5 + 0.5 * (below / who.nose_long).clip(0, 1))
    across = u / half
    ridge = (1 - across * across).clip(0) * (below / 0.08 + 0.4).clip(0, 1) * (0.6 - tip / 0.05).clip(0, 1)
    shade = 1 - who.socket * _bump(side - who.eye_apart, below + 0.02, 0.17, 0.14)
    shade += who.nose_relief * ridge * (0.12 + 0.5 * view.light_x * view.light * across)
    shade -= 0.5 * who.nose_relief * _bump(u, tip - 0.035, 1.1 * who.nose_wide, 0.05)
    image = skin * shade
    image += who.cheeks * _BLUSH * _bump(side - 0.27, v - 0.12, 0.17, 0.16)
    nostrils = _ellipse(side - 0.55 * who.nose_wide, tip - 0.01, 0.3 * who.nose_wide, 0.014)
    _paint(image, 0.6 * _cover(nostrils, pixel), 0.3 * skin)
    mole = _length(u - who.mole_x, v - who.mole_y) - 0.022
    _paint(image, who.mole.clip(0) * _cover(mole, pixel), 0.4 * skin)

    mouth = tip - who.mouth_down
    jaw = (0.5 + (mouth + who.beard_up - 0.3 * (side / who.width) ** 2) / 0.12).clip(0, 1)
    _paint(image, who.beard.clip(0) * jaw, 0.8 * hair)
    lip = _ellipse(u, mouth + 0.5 * who.mouth_down - 0.02, 1.05 * who.mouth_wide, 0.45 * who.mouth_down)
    _paint(image, who.moustache.clip(0) * (0.5 - lip / 0.04).clip(0, 1), 0.8 * hair)
    _eyes(who, view, image, face)
    _mouth(who, view, image, face, mouth)
    return image


def _eyes(who: SimpleNamespace, view: SimpleNamespace, image: np.ndarray, face: _Face) -> None:
    """Both eyes and brows at once: outwards and down from the middle of an eye are the same for left and right."""
    pixel = face.pixel
    out, down = _turned(face.side - who.eye_apart, face.v + who.eye_up, -who.eye_slant)
    arch = (1 - (out / who.eye_width) ** 2).clip(-1)
    upper = down + 0.9 * who.eye_open * view.eyes * arch
    # The lower lid hardly moves.
    lower = down - 0.6 * who.eye_open * (0.5 + 0.5 * view.eyes) * arch
    white = _cover(np.maximum(-upper, lower), pixel)
    _paint(image, white, np.float32(0.92))
    radius = 0.052
    iris = _length(out - view.gaze_x * np.sign(face.u), down - view.gaze_y) - radius
    _paint(image, white * _cover(iris, pixel), _between(_IRIS, who.iris_hue) * (0.4 + who.iris_light))
    _paint(image, white * _cover(iris + 0.55 * radius, pixel), np.float32(0.03))
    lashes = np.maximum(np.abs(upper) - who.lashes, np.abs(out) - who.eye_width)
    _paint(image, 0.9 * _cover(lashes, pixel), 0.18 * face.skin)

    along = out / (1.25 * who.eye_width)
    middle = who.brow_up + view.brow_raise + who.brow_bow * (1 - along * along) + who.brow_angle * out
    # Thinner to the outside.
    brow = np.maximum(np.abs(down + middle) - who.brow_thick * (1.1 - 0.4 * along), 0.1 * (np.abs(along) - 1))
    _paint(image, who.brow_dark * _cover(brow, pixel), 0.7 * face.hair)


def _mouth(who: SimpleNamespace, view: SimpleNamespace, image: np.ndarray, face: _Face, down: np.ndarray) -> None:
    """`down` (B, H, W) runs from the line between the lips."""
    pixel, opened = face.pixel, view.mouth_open.clip(0)
    wide = who.mouth_wide + 0.6 * view.smile.clip(0)
    along = face.u / wide
    arch = 1 - along * along
    down = down + view.smile * (along * along - 0.4)
    pale = 0.82 * face.skin
    lips = np.maximum(-down - (who.lip_upper + 0.3 * opened) * arch, down - (who.lip_lower + opened) * arch)
    ends = (np.abs(along) - 1) * wide
    _paint(image, _cover(np.maximum(lips, ends), pixel), pale + who.lip_red * (_LIPS * (0.4 + 0.6 * face.skin) - pale))
    inside = np.maximum(-down - 0.3 * opened * arch, down - opened * arch)
    # A closed mouth is a dark line.
    _paint(image, _cover(np.maximum(inside - 0.006, ends + 0.05 * wide), pixel), 0.22 * face.skin)
    _paint(image, _cover(np.maximum(inside + 0.008, down - 0.35 * opened), pixel), np.float32(0.9))


def _glasses(who: SimpleNamespace, view: SimpleNamespace, figure: np.ndarray, face: _Face, head: np.ndarray) -> None:
    worn = (view.without_glasses < who.glasses) * head
    a, b = np.abs(face.side - who.eye_apart - 0.01) / who.glasses_wide, np.abs(face.v + who.eye_up) / who.glasses_high
    rim = _length(a, b)
    rim = rim + who.glasses_square * (np.maximum(a, b) - rim)
    bridge = np.maximum(b * who.glasses_high, (1 - a) * who.glasses_wide)
    frame = np.minimum(np.abs(rim - 1) * who.glasses_high, bridge) - 0.014
    _paint(figure, 0.12 * worn * _cover((rim - 1) * who.glasses_high, face.pixel), np.float32(1))
    _paint(figure, worn * _cover(frame, face.pixel), _between(_FRAME, who.glasses_dark))


def _camera(view: SimpleNamespace, image: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """White balance, exposure, contrast, blur and sensor noise: from (3, B, H, W) to uint8 (B, H, W, 3)."""
    balance = np.stack([1 + view.warmth, np.ones_like(view.warmth), 1 - view.warmth])
    image = 0.45 + view.contrast * (image * (np.exp(view.exposure) * balance) - 0.45)
    for _ in range(2):
        for axis in (2, 3):
            image += 0.4 * view.blur**2 * (_neighbours(image, axis) - image)
    image = image.transpose(1, 2, 3, 0)
    places = (view.grain.ravel() * _GRAIN).astype(np.int64)
    noise = np.lib.stride_tricks.sliding_window_view(grain, image[0].size)[places].reshape(image.shape)
    return ((image + noise * view.noise[..., None]).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _neighbours(image: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the pixels before and after each pixel along `axis` 2 or 3 of (3, B, H, W)."""
    wide = np.pad(image, [(int(i == axis),) * 2 for i in range(4)], mode="edge")
    return 0.5 * (wide[:, :, :-2] + wide[:, :, 2:] if axis == 2 else wide[..., :-2] + wide[..., 2:])


def _colour(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """HSV in [0, 1], each (B, 1, 1), as RGB (3, B, 1, 1); hue wraps."""
    wheel = np.abs((hue + np.array([0, 2 / 3, 1 / 3], np.float32)[:, None, None, None]) % 1 * 6 - 3) - 1
    return value * (1 + saturation * (wheel.clip(0, 1) - 1))


def _between(colours: np.ndarray, place: np.ndarray) -> np.ndarray:
    """RGB (3, B, 1, 1) at `place` (B, 1, 1), from 0 to 1, on the way through `colours` (n, 3)."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(place, stops, channel) for channel in colours.T]).astype(np.float32)


def _turned(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of `x`, `y` in axes that are turned by `angle`, from x towards y."""
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Half the time of `np.hypot`, and nothing in here overflows.
    return np.sqrt(x * x + y * y)


def _ellipse(x: np.ndarray, y: np.ndarray, wide: np.ndarray, high: np.ndarray) -> np.ndarray:
    """About the distance from the outline of an ellipse, negative inside."""
    return (_length(x / wide, y / high) - 1) * np.minimum(wide, high)


def _bump(x: np.ndarray, y: np.ndarray, wide: np.ndarray, high: np.ndarray) -> np.ndarray:
    """From 1 in the middle of an ellipse smoothly down to 0 at its outline."""
    return (1 - (x / wide) ** 2 - (y / high) ** 2).clip(0) ** 2


def _cover(distance: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """Share of each pixel inside an outline whose signed distance (negative inside) is known at the pixel's middle."""
    return (0.5 - distance / pixel).clip(0, 1)


def _paint(image: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> None:
    """Lay `colour`, which broadcasts to `image` (3, B, H, W), over it where `cover` (B, H, W) is."""
    image += cover * (colour - image)
