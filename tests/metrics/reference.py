"""The metrics in plain loops, to judge the package by: one example, one pixel and one forward pass at a time.

Written from section 6 of the design, in 2-D; it shares no code with the package.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.attr import reference

Confidence = Callable[[Tensor], float]
"""The class confidence of one input (1, C, H, W)."""


def summed(attribution: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 1, H, W) of an attribution (1, K, h, w)."""
    total = torch.zeros_like(attribution[:, :1])
    for channel in range(attribution.shape[1]):
        total = total + attribution[:, channel : channel + 1]
    if reference.is_constant(total[0, 0]):
        # `up` would round it differently from place to place.
        return total.new_full((1, 1, *size), float(total[0, 0, 0, 0]))
    return reference.up(total, size)


def whole_and_seen(confidence: Confidence, image: Tensor, black: Tensor, attribution: Tensor) -> tuple[float, float]:
    mask = reference.minmax(summed(attribution, tuple(image.shape[2:])))
    return confidence(image), confidence(reference.blend(mask, image, black))


def confidence_drop(confidence: Confidence, image: Tensor, black: Tensor, attribution: Tensor) -> float:
    whole, seen = whole_and_seen(confidence, image, black, attribution)
    return max(0.0, whole - seen) / whole


def confidence_increase(confidence: Confidence, image: Tensor, black: Tensor, attribution: Tensor) -> float:
    whole, seen = whole_and_seen(confidence, image, black, attribution)
    return 1.0 if seen > whole else 0.0


def curve(
    confidence: Confidence, start: Tensor, end: Tensor, attribution: Tensor, steps: int
) -> tuple[float, list[float], list[float]]:
    """Area, fractions and confidences as the pixels of ``start`` become those of ``end``, most important first."""
    _, _, height, width = start.shape
    values = summed(attribution, (height, width))
    pixels = [(-float(values[0, 0, row, column]), row, column) for row in range(height) for column in range(width)]
    pixels.sort()
    fractions, confidences = [], []
    for step in range(steps + 1):
        # To the nearest whole number of pixels, halves to the even one.
        count = round(step / steps * len(pixels))
        shown = start.clone()
        for _, row, column in pixels[:count]:
            shown[:, :, row, column] = end[:, :, row, column]
        fractions.append(count / len(pixels))
        confidences.append(confidence(shown))
    area = 0.0
    for step in range(steps):
        width_of_step = fractions[step + 1] - fractions[step]
        area += width_of_step * (confidences[step] + confidences[step + 1]) / 2
    return area, fractions, confidences


def blurred(image: Tensor) -> Tensor:
    """A Gaussian of 5 pixels, cut off 5 pixels from its centre; the border is repeated."""
    _, channels, height, width = image.shape
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            weights = 0.0
            for down in range(-5, 6):
                for right in range(-5, 6):
                    weight = math.exp(-(down**2 + right**2) / (2 * 5**2))
                    y, x = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
                    weights += weight
                    for channel in range(channels):
                        result[0, channel, row, column] += weight * image[0, channel, y, x]
            result[0, :, row, column] /= weights
    return result


def insertion(confidence: Confidence, image: Tensor, attribution: Tensor, steps: int) -> float:
    return curve(confidence, blurred(image), image, attribution, steps)[0]


def deletion(confidence: Confidence, image: Tensor, black: Tensor, attribution: Tensor, steps: int) -> float:
    return curve(confidence, image, black, attribution, steps)[0]


def pointing_game(attribution: Tensor, mask: Tensor, tolerance: float = 0) -> float:
    """``mask`` is (H, W), bool."""
    height, width = mask.shape
    values = summed(attribution, (height, width))[0, 0]
    best = (0, 0)
    for row in range(height):
        for column in range(width):
            if values[row, column] > values[best]:
                best = (row, column)
    if reference.is_constant(values):
        return 0.0
    for row in range(height):
        for column in range(width):
            if mask[row, column] and math.dist(best, (row, column)) <= tolerance:
                return 1.0
    return 0.0


def energy_pointing_game(attribution: Tensor, mask: Tensor) -> float:
    height, width = mask.shape
    values = summed(attribution, (height, width))[0, 0]
    inside = everywhere = 0.0
    for row in range(height):
        for column in range(width):
            energy = max(0.0, float(values[row, column]))
            everywhere += energy
            inside += energy if mask[row, column] else 0.0
    return inside / everywhere if everywhere > 0 else 0.0
