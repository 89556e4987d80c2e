"""Synthetic images: one object of a known shape among clutter, with its true mask.

Only the shape decides the class. Colours, textures, lighting, place, covered area, rotation and background have the
same distributions for every class, and the clutter is painted like the object.
"""

import colorsys
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PICTURE_SIZE = 112

Array = npt.NDArray[np.floating[Any]]
Shape = Callable[[Array, Array], Array]
"""Signed distance from the points (x, y) to an outline of about unit size: negative inside."""


def generate(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws images that each show one object of :data:`CLASS_NAMES` on a cluttered background.

    Image ``i`` depends only on ``(seed, i)``, so a larger ``count`` adds images to the same sequence.

    Args:
        count (int): How many images to draw, 0 or more.
        seed (int): Selects the sequence of images, 0 or more.

    Returns:
        tuple of three tensors:
            - **images** (*Tensor*): float32 of shape (count, 3, 112, 112), RGB in [0, 1].
            - **labels** (*Tensor*): int64 of shape (count,), indices into :data:`CLASS_NAMES`.
            - **masks** (*Tensor*): bool of shape (count, 1, 112, 112), true on the object's pixels.

    Example::

        >>> images, labels, masks = generate(64, seed=0)
        >>> CLASS_NAMES[labels[0]]
    """
    images = np.empty((count, 3, PICTURE_SIZE, PICTURE_SIZE), dtype=np.float32)
    labels = np.empty(count, dtype=np.int64)
    masks = np.empty((count, 1, PICTURE_SIZE, PICTURE_SIZE), dtype=np.bool_)
    for i in range(count):
        canvas, labels[i], masks[i, 0] = _draw_picture(np.random.default_rng([seed, i]))
        images[i] = canvas.transpose(2, 0, 1)
    return torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(masks)


def _draw_picture(rng: np.random.Generator) -> tuple[Array, int, npt.NDArray[np.bool_]]:
    light = rng.uniform(0, 2 * math.pi)
    canvas = _background(rng)
    for _ in range(rng.integers(4, 10)):
        distance = _placed(_DISTRACTORS[rng.integers(len(_DISTRACTORS))](rng), rng, 0.004, 0.05)
        canvas = _paint(canvas, distance, _fill(rng, _colour(rng)), light)
    label = int(rng.integers(len(CLASS_NAMES)))
    distance = _placed(_SHAPES[label](rng), rng, 0.08, 0.22, inside=True)
    painted = distance < 0
    fill = _fill(rng, _contrasting_colour(rng, canvas[painted].mean(axis=0)))
    canvas = _paint(canvas, distance, fill, light)
    grain = rng.normal(0, rng.uniform(0.0, 0.025), canvas.shape[:2]).astype(np.float32)
    return np.clip(canvas + grain[..., None], 0, 1), label, painted


# The objects. Each function draws an instance's proportions and returns its shape.


def _ring(rng: np.random.Generator) -> Shape:
    width = rng.uniform(0.2, 0.27)
    return lambda x, y: np.abs(np.hypot(x, y) - (1 - width)) - width


def _star(rng: np.random.Generator) -> Shape:
    sector = math.pi / 5
    inner = rng.uniform(0.4, 0.5)
    # The edge that leaves the tip, at (1, 0), for the notch beside it.
    edge_x, edge_y = inner * math.cos(sector) - 1, inner * math.sin(sector)
    length = math.hypot(edge_x, edge_y)

    def distance(x: Array, y: Array) -> Array:
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        folded = np.abs((angle + sector) % (2 * sector) - sector)
        along, across = radius * np.cos(folded) - 1, radius * np.sin(folded)
        return (along * edge_y - across * edge_x) / length

    return distance


def _cross(rng: np.random.Generator) -> Shape:
    width = rng.uniform(0.22, 0.32)

    def distance(x: Array, y: Array) -> Array:
        x, y = np.abs(x), np.abs(y)
        return np.minimum(_box(x, y, 1.0, width), _box(x, y, width, 1.0)) - 0.04

    return distance


def _spiral(rng: np.random.Generator) -> Shape:
    turns = rng.uniform(1.9, 2.4)
    pitch = 1 / (turns + 0.25)
    width = pitch * rng.uniform(0.24, 0.3)
    hand = 1.0 if rng.uniform() < 0.5 else -1.0

    def distance(x: Array, y: Array) -> Array:
        y = hand * y
        angle = np.arctan2(y, x) / (2 * math.pi)
        outermost = np.floor(turns - angle)
        arm = np.minimum(np.round(np.hypot(x, y) / pitch - angle), outermost)
        end = np.full_like(angle, turns)
        return np.minimum(to_curve(x, y, angle + arm), to_curve(x, y, end)) - width

    def to_curve(x: Array, y: Array, turn: Array) -> Array:
        turn = np.clip(turn, 0.25, turns)
        angle = 2 * math.pi * turn
        curve_x, curve_y = pitch * turn * np.cos(angle), pitch * turn * np.sin(angle)
        return np.hypot(x - curve_x, y - curve_y)

    return distance


def _crescent(rng: np.random.Generator) -> Shape:
    shift = rng.uniform(0.42, 0.58)
    return lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.85 - np.hypot(x - shift, y))


def _heart(rng: np.random.Generator) -> Shape:
    stretch = rng.uniform(0.9, 1.1)

    def distance(x: Array, y: Array) -> Array:
        x, y = np.abs(x) / stretch, 0.55 - y
        lobe = np.hypot(x - 0.25, y - 0.75) - 0.3535
        half = np.maximum(x + y, 0) / 2
        wedge = np.minimum(np.hypot(x, y - 1), np.hypot(x - half, y - half)) * np.sign(x - y)
        return np.where(x + y > 1, lobe, wedge)

    return distance


def _leaf(rng: np.random.Generator) -> Shape:
    bulge = rng.uniform(0.4, 0.6)
    radius = (1 + bulge**2) / (2 * bulge)
    taper = rng.uniform(0.25, 0.45)

    def distance(x: Array, y: Array) -> Array:
        y = np.abs(y)
        blade = np.hypot(x, y * (1 + taper * x) + radius - bulge) - radius
        stalk = _box(np.abs(x + 1.1), y, 0.35, 0.0) - 0.06
        return np.minimum(blade, stalk)

    return distance


def _flower(rng: np.random.Generator) -> Shape:
    sector = math.pi / int(rng.integers(5, 8))
    reach = rng.uniform(0.62, 0.68)
    petal = reach * math.sin(sector) * 0.95

    def distance(x: Array, y: Array) -> Array:
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        folded = (angle + sector) % (2 * sector) - sector
        u, v = radius * np.cos(folded), radius * np.sin(folded)
        return np.minimum(np.hypot(u - reach, v) - petal, radius - reach)

    return distance


CLASS_NAMES: tuple[str, ...] = ("ring", "star", "cross", "spiral", "crescent", "heart", "leaf", "flower")
_SHAPES = (_ring, _star, _cross, _spiral, _crescent, _heart, _leaf, _flower)


# The clutter: shapes of no class.


def _pebble(rng: np.random.Generator) -> Shape:
    flat = rng.uniform(0.5, 1.0)
    return lambda x, y: (np.hypot(x, y / flat) - 1) * flat


def _stick(rng: np.random.Generator) -> Shape:
    width = rng.uniform(0.04, 0.15)
    return lambda x, y: _box(np.abs(x), np.abs(y), 1.0, 0.0) - width


def _ribbon(rng: np.random.Generator) -> Shape:
    width, height, waves = rng.uniform(0.06, 0.12), rng.uniform(0.08, 0.2), rng.uniform(4, 8)

    def distance(x: Array, y: Array) -> Array:
        slope = height * waves * np.cos(waves * x)
        across = np.abs(y - height * np.sin(waves * x)) / np.sqrt(1 + slope**2)
        return np.maximum(across - width, np.abs(x) - 1)

    return distance


def _tile(rng: np.random.Generator) -> Shape:
    height = rng.uniform(0.4, 1.0)
    return lambda x, y: _box(np.abs(x), np.abs(y), 1.0, height) - 0.06


def _wedge(rng: np.random.Generator) -> Shape:
    slope = rng.uniform(0.35, 0.6)
    return lambda x, y: np.maximum((np.abs(y) - (1 - x) * slope) / math.hypot(1, slope), -1 - x)


_DISTRACTORS = (_pebble, _stick, _ribbon, _tile, _wedge)


def _box(x: Array, y: Array, width: float, height: float) -> Array:
    """Signed distance to a box of these half sizes, for points with neither x nor y negative."""
    dx, dy = x - width, y - height
    return np.hypot(np.clip(dx, 0, np.inf), np.clip(dy, 0, np.inf)) + np.clip(np.maximum(dx, dy), -np.inf, 0)


# Putting a shape on the image.


def _placed(shape: Shape, rng: np.random.Generator, smallest: float, largest: float, inside: bool = False) -> Array:
    """Signed distance in pixels to the shape, rotated, moved and scaled at random.

    The shape covers between the smallest and the largest share of the image. With ``inside``, all of it lies within
    the image, otherwise only its centre does.
    """
    area, extent = _area_and_extent(shape)
    coverage = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
    scale = min(PICTURE_SIZE * math.sqrt(coverage / area), (PICTURE_SIZE / 2 - 2) / extent)
    margin = scale * extent + 1 if inside else 0.0
    angle = rng.uniform(0, 2 * math.pi)
    # Plain numbers, since NumPy's own would make the coordinates float64.
    x, y = _turned(angle, *rng.uniform(margin, PICTURE_SIZE - margin, 2).tolist())
    return shape(x / scale, y / scale) * scale


def _area_and_extent(shape: Shape) -> tuple[float, float]:
    side = np.linspace(-1.6, 1.6, 65, dtype=np.float32)
    x, y = np.meshgrid(side, side)
    within = shape(x, y) < 0
    cell = float(side[1] - side[0])
    return float(within.sum()) * cell**2, float(np.hypot(x, y)[within].max()) + cell / 2


def _turned(angle: float, centre_x: float, centre_y: float) -> tuple[Array, Array]:
    """Pixel coordinates with the given origin and rotation."""
    pixels = np.arange(PICTURE_SIZE, dtype=np.float32) + 0.5
    x, y = pixels - centre_x, (pixels - centre_y)[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _paint(canvas: Array, distance: Array, fill: Array, light: float) -> Array:
    """Lays the shape on the canvas with a soft shadow and an edge that catches the light."""
    slope_y, slope_x = np.gradient(distance)
    # Far from the outline, the distances of some shapes are inexact, with slopes above 1.
    facing = np.clip(np.asarray(slope_x * math.cos(light) + slope_y * math.sin(light)), -1, 1)
    # A step changes the distance by the slope along it: cheaper than drawing the outline again.
    shadow = 0.45 / (1 + np.exp(np.clip((distance + 2.5 * facing) / 1.5, -30, 30)))
    relief = 1 + 0.3 * facing * np.exp(np.clip(distance, -np.inf, 0) / 2.5)
    opacity = np.clip(0.5 - distance, 0, 1)[..., None]
    canvas = canvas * (1 - shadow[..., None])
    return canvas * (1 - opacity) + np.clip(fill * relief[..., None], 0, 1) * opacity


# Colours and textures.


def _background(rng: np.random.Generator) -> Array:
    hue = rng.uniform()
    ground, tint, accent = (
        _hsv(hue + rng.normal(0, spread), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.9)) for spread in (0.0, 0.06, 0.25)
    )
    canvas = _mixed(ground, tint, _ramp(rng))
    canvas = _mixed(canvas, tint, _PATTERNS[rng.integers(len(_PATTERNS))](rng) * rng.uniform(0.1, 0.6))
    canvas = _mixed(canvas, accent, _clouds(rng) ** 2 * rng.uniform(0.2, 0.8))
    return canvas * (1 + 0.35 * (_clouds(rng, coarsest=12) - 0.5))[..., None]


def _fill(rng: np.random.Generator, colour: Array) -> Array:
    other = np.clip(colour * rng.uniform(0.55, 1.25) + rng.normal(0, 0.06, 3), 0, 1).astype(np.float32)
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))](rng)
    return _mixed(colour, other, pattern) * (0.9 + 0.2 * _clouds(rng, coarsest=12))[..., None]


def _ramp(rng: np.random.Generator) -> Array:
    x, _ = _turned(rng.uniform(0, 2 * math.pi), PICTURE_SIZE / 2, PICTURE_SIZE / 2)
    return np.clip(0.5 + x / PICTURE_SIZE, 0, 1)


def _stripes(rng: np.random.Generator) -> Array:
    x, _ = _turned(rng.uniform(0, 2 * math.pi), 0, 0)
    bend = _clouds(rng) * rng.uniform(0, 3)
    return _soft_step(np.sin(x * (2 * math.pi / rng.uniform(6, 16)) + bend))


def _dots(rng: np.random.Generator) -> Array:
    x, y = _turned(rng.uniform(0, 2 * math.pi), 0, 0)
    frequency = 2 * math.pi / rng.uniform(7, 14)
    return _soft_step(np.cos(x * frequency) + np.cos(y * frequency) - 0.6)


def _checks(rng: np.random.Generator) -> Array:
    x, y = _turned(rng.uniform(0, 2 * math.pi), 0, 0)
    frequency = 2 * math.pi / rng.uniform(10, 22)
    return _soft_step(3 * np.sin(x * frequency) * np.sin(y * frequency))


def _clouds(rng: np.random.Generator, coarsest: int = 3) -> Array:
    """Smooth noise in [0, 1], four octaves of it, with ``coarsest`` cells across in the first."""
    total = np.zeros((PICTURE_SIZE, PICTURE_SIZE), dtype=np.float32)
    for octave in range(4):
        cells = min(coarsest * 2**octave, PICTURE_SIZE)
        noise = rng.random((cells + 1, cells + 1), dtype=np.float32)
        left, blend = _interpolation(cells)
        rows = noise[left] + (noise[left + 1] - noise[left]) * blend[:, None]
        total += (rows[:, left] + (rows[:, left + 1] - rows[:, left]) * blend) * 0.55**octave
    return (total - np.min(total)) / np.ptp(total)


_PATTERNS = (_ramp, _stripes, _dots, _checks, _clouds)


@cache
def _interpolation(cells: int) -> tuple[npt.NDArray[np.int64], Array]:
    """For each pixel along a side, the cell corner before it and the weight of the one after."""
    blend, left = np.modf((np.arange(PICTURE_SIZE, dtype=np.float32) + 0.5) * (cells / PICTURE_SIZE))
    return left.astype(np.int64), blend * blend * (3 - 2 * blend)


def _soft_step(values: Array) -> Array:
    return np.clip(0.5 + 1.5 * values, 0, 1)


def _mixed(first: Array, second: Array, share: Array) -> Array:
    return first + (second - first) * share[..., None]


def _contrasting_colour(rng: np.random.Generator, behind: Array) -> Array:
    """The one of three random colours that stands out most from the colour behind it."""
    return max((_colour(rng) for _ in range(3)), key=lambda colour: float(np.abs(colour - behind).sum()))


def _colour(rng: np.random.Generator) -> Array:
    return _hsv(rng.uniform(), rng.uniform(0.3, 0.9), rng.uniform(0.4, 1.0))


def _hsv(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)
