"""Seeded images of products: twelve categories in eight colours and four styles, on the pale ground of a shop.

They replace a shop's photographs where none are available. A product keeps its category, colour, style and cut; an
image adds pose, light and noise.

The difficulty was fixed once, on clean accuracy alone: trained for 8 epochs on 3,000 images of 48 x 48 of seed 0, a
`small_cnn` of three blocks is right on 0.924 of 1,000 others, one of four blocks on 0.965.
"""

from typing import NamedTuple

import numpy as np

from common.errors import UserError

CATEGORIES = (
    "shirt",
    "jumper",
    "trousers",
    "skirt",
    "dress",
    "sock",
    "shoe",
    "boot",
    "hat",
    "bag",
    "watch",
    "belt",
)
COLOURS = ("black", "grey", "red", "orange", "yellow", "green", "blue", "purple")
STYLES = ("plain", "striped", "dotted", "checked")

# RGB in [0, 1] of each colour, from which a product's own shade departs.
_SHADES = np.array(
    [
        (0.13, 0.13, 0.15),
        (0.55, 0.55, 0.57),
        (0.75, 0.14, 0.16),
        (0.90, 0.48, 0.13),
        (0.88, 0.78, 0.20),
        (0.18, 0.52, 0.26),
        (0.16, 0.32, 0.70),
        (0.48, 0.22, 0.60),
    ]
)
# Supersampling of the outlines, and corners of an ellipse.
_FINE, _ROUND = 4, 24
# How far corners depart from a category's pattern, in shares of the image's side, and how wide products may be cut.
CUT, STRETCH = 0.04, 0.3
# Pose: turn in degrees, shift and size in shares of the side. Light: slope over the image. Noise: deviation, of 1.
TURN, SHIFT, SIZE, LIGHT, NOISE = 35.0, 0.08, (0.5, 1.0), 0.3, 0.07

Point = tuple[float, float]
# Roles: "main" has the colour and the style, "accent" a colour beside it, "hole" shows the ground.
Part = tuple[str, tuple[Point, ...]]


class Products(NamedTuple):
    """`images` uint8 (N, size, size, 3); `category`, `colour` and `style` int32 (N,), places in the tuples above."""

    images: np.ndarray
    category: np.ndarray
    colour: np.ndarray
    style: np.ndarray


def products(count: int, *, seed: int, size: int = 48, split: str = "catalogue") -> Products:
    """`count` products, the first ones of a sequence that `seed` and `split` fix: other splits hold other products.

    Errors: `UserError` for fewer than one, images of under 16 pixels, and a negative seed.
    """
    if count < 1 or size < 16 or seed < 0:
        raise UserError(f"products: count {count}, size {size}, seed {seed}; expected at least 1, 16 and 0")
    word = int.from_bytes(split.encode(), "big") % 2**32
    images = np.empty((count, size, size, 3), np.uint8)
    traits = np.empty((3, count), np.int32)
    for row in range(count):
        rng = np.random.default_rng([seed, word, row])
        traits[:, row] = [rng.integers(len(names)) for names in (CATEGORIES, COLOURS, STYLES)]
        images[row] = _image(*traits[:, row], size, rng)
    return Products(images, *traits)


def _image(category: int, colour: int, style: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (size, size, 3)."""
    place = _pose(rng)
    wide, tall = rng.uniform(1 - STRETCH, 1 + STRETCH, 2)
    masks = {"main": np.zeros((size, size)), "accent": np.zeros((size, size)), "hole": np.zeros((size, size))}
    for role, corners in _PATTERNS[CATEGORIES[category]]:
        # What is round stays round.
        moved = rng.normal(0.0, CUT, (1 if len(corners) == _ROUND else len(corners), 2))
        points = (np.array(corners) - 0.5) * (wide, tall) + moved
        masks[role] = np.maximum(masks[role], _filled(points @ place[:2] + place[2] + 0.5, size))
    shade = np.clip(_SHADES[colour] + rng.normal(0.0, 0.05, 3), 0.03, 0.97)
    # What lies beside the colour: lighter on dark products, darker on light ones.
    other = np.clip(shade + (0.35 if shade.mean() < 0.4 else -0.3) + rng.normal(0.0, 0.05, 3), 0.03, 0.97)
    ground = np.full(3, rng.uniform(0.86, 0.99)) + rng.normal(0.0, 0.015, 3)
    cloth = shade + (other - shade) * _weave(STYLES[style], size, rng)[..., None]
    image = np.broadcast_to(ground, (size, size, 3)).copy()
    shadow = np.roll(np.maximum(masks["main"], masks["accent"]), (size // 24, size // 24), (0, 1))
    image *= 1 - 0.18 * shadow[..., None]
    for mask, filling in ((masks["main"], cloth), (masks["accent"], other * 0.9), (masks["hole"], ground)):
        image += mask[..., None] * (filling - image)
    across, down = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    turn = rng.uniform(0, 2 * np.pi)
    image *= (1 + rng.uniform(0, LIGHT) * (np.cos(turn) * across + np.sin(turn) * down))[..., None]
    image += rng.normal(0.0, NOISE, image.shape)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _pose(rng: np.random.Generator) -> np.ndarray:
    """(3, 2): what points around the middle, in shares of the side, are multiplied by, and their shift."""
    turn, size = np.deg2rad(rng.uniform(-TURN, TURN)), rng.uniform(*SIZE)
    turned = size * np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    turned[0] *= rng.choice((-1, 1))
    return np.concatenate([turned, rng.uniform(-SHIFT, SHIFT, (1, 2))])


def _filled(points: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel lies in the polygon `points` (k, 2), in shares of the side: (size, size) in [0, 1]."""
    from PIL import Image, ImageDraw

    fine = Image.new("L", (_FINE * size, _FINE * size))
    ImageDraw.Draw(fine).polygon([tuple(point) for point in (points * _FINE * size).tolist()], fill=255)
    return np.asarray(fine, np.float64).reshape(size, _FINE, size, _FINE).mean(axis=(1, 3)) / 255


def _weave(style: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """How much of the second colour each pixel of the cloth has, (size, size) in [0, 1]."""
    across, down = np.meshgrid(np.arange(size) / size, np.arange(size) / size)
    turn, waves, first = rng.uniform(0, np.pi), rng.uniform(7, 11), rng.uniform(0, 1, 2)
    along = np.cos(turn) * across + np.sin(turn) * down
    beside = -np.sin(turn) * across + np.cos(turn) * down
    one, two = (np.sin(2 * np.pi * (waves * v + shift)) for v, shift in ((along, first[0]), (beside, first[1])))
    strength = {"plain": 0 * one, "striped": 3 * one, "dotted": 4 * (one + two - 1.0), "checked": 3 * one * two}[style]
    return np.clip(0.5 + strength, 0, 1) * 0.8 if style != "plain" else strength


def _corners(text: str) -> tuple[Point, ...]:
    """ "35 20  65 20  ..." -> ((0.35, 0.2), (0.65, 0.2), ...)."""
    numbers = [float(word) / 100 for word in text.split()]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _round(x: float, y: float, wide: float, tall: float) -> tuple[Point, ...]:
    """An ellipse around (x, y) with these half axes."""
    turn = 2 * np.pi * np.arange(_ROUND) / _ROUND
    return tuple(zip((x + wide * np.cos(turn)) / 100, (y + tall * np.sin(turn)) / 100, strict=True))


# In hundredths of the image's side, y down. Neighbours differ by a part only: a jumper has sleeves, a dress a top.
_PATTERNS: dict[str, tuple[Part, ...]] = {
    "shirt": (
        ("main", _corners("35 20  65 20  90 34  82 48  70 42  70 85  30 85  30 42  18 48  10 34")),
        ("hole", _corners("42 18  58 18  50 28")),
    ),
    "jumper": (
        ("main", _corners("35 20  65 20  80 30  93 75  82 78  71 46  71 85  29 85  29 46  18 78  7 75  20 30")),
        ("hole", _corners("43 18  57 18  50 24")),
    ),
    "trousers": (
        ("main", _corners("33 10  67 10  76 92  58 92  50 38  42 92  24 92")),
        ("accent", _corners("33 9  67 9  67 14  33 14")),
    ),
    "skirt": (
        ("main", _corners("36 25  64 25  85 82  15 82")),
        ("accent", _corners("36 23  64 23  64 29  36 29")),
    ),
    "dress": (
        ("main", _corners("40 8  46 20  54 20  60 8  66 12  60 40  83 92  17 92  40 40  34 12")),
        ("accent", _corners("40 38  60 38  61 44  39 44")),
    ),
    "sock": (
        ("main", _corners("34 8  56 8  57 56  84 70  88 82  80 90  50 84  34 70")),
        ("accent", _corners("33 7  57 7  57 16  33 16")),
    ),
    "shoe": (
        ("main", _corners("10 42  30 46  42 40  62 56  88 62  92 72  10 72")),
        ("accent", _corners("8 71  93 71  93 78  8 78")),
    ),
    "boot": (
        ("main", _corners("30 10  58 10  58 56  82 68  86 82  30 82")),
        ("accent", _corners("28 81  87 81  87 88  28 88")),
    ),
    "hat": (
        ("main", _corners("30 62  34 30  50 24  66 30  70 62")),
        ("main", _round(50, 65, 44, 10)),
        ("accent", _corners("31 52  69 52  70 60  30 60")),
    ),
    "bag": (
        ("accent", _round(50, 38, 24, 24)),
        ("hole", _round(50, 38, 17, 18)),
        ("main", _corners("20 42  80 42  88 86  12 86")),
    ),
    "watch": (
        ("main", _corners("42 6  58 6  60 94  40 94")),
        ("accent", _round(50, 50, 22, 22)),
        ("hole", _round(50, 50, 15, 15)),
    ),
    "belt": (
        ("main", _round(50, 50, 45, 30)),
        ("hole", _round(50, 50, 36, 20)),
        ("accent", _corners("42 70  58 70  58 86  42 86")),
    ),
}
