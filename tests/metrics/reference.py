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


def confidence_gain(confidence: Confidence, image: Tensor, black: Tensor, attribution: Tensor) -> float:
    whole, seen = whole_and_seen(confidence, image, black, attribution)
    return max(0.0, seen - whole) / (1 - whole) if whole < 1 else 0.0


Explain = Callable[[Tensor], Tensor]
"""The attribution of one input (1, C, H, W)."""


def numbers(values: Tensor) -> list[float]:
    return [float(value) for value in values.reshape(-1)]


def coherency(image: Tensor, black: Tensor, attribution: Tensor, explain: Explain) -> float:
    size = tuple(image.shape[2:])
    mask = reference.minmax(summed(attribution, size))
    one = numbers(mask)
    other = numbers(summed(explain(reference.blend(mask, image, black)), size))
    mean_one, mean_other = sum(one) / len(one), sum(other) / len(other)
    covariance = variance_one = variance_other = 0.0
    for a, b in zip(one, other, strict=True):
        covariance += (a - mean_one) * (b - mean_other)
        variance_one += (a - mean_one) ** 2
        variance_other += (b - mean_other) ** 2
    if min(one) == max(one) or min(other) == max(other):
        return 0.0
    return (1 + covariance / math.sqrt(variance_one * variance_other)) / 2


def complexity(image: Tensor, attribution: Tensor) -> float:
    values = numbers(reference.minmax(summed(attribution, tuple(image.shape[2:]))))
    return sum(abs(value) for value in values) / len(values)


def adcc(confidence: Confidence, image: Tensor, black: Tensor, attribution: Tensor, explain: Explain) -> float:
    parts = [
        coherency(image, black, attribution, explain),
        1 - complexity(image, attribution),
        1 - confidence_drop(confidence, image, black, attribution),
    ]
    return 3 / sum(1 / part for part in parts) if min(parts) > 0 else 0.0


def sparseness(image: Tensor, attribution: Tensor) -> float:
    """Half of the mean absolute difference of all pairs, over the mean."""
    values = [abs(value) for value in numbers(summed(attribution, tuple(image.shape[2:])))]
    differences = sum(abs(a - b) for a in values for b in values)
    return differences / (2 * len(values) * sum(values)) if sum(values) > 0 else 0.0


def relevance_mass(attribution: Tensor, mask: Tensor) -> float:
    height, width = mask.shape
    values = summed(attribution, (height, width))[0, 0]
    inside = everywhere = 0.0
    for row in range(height):
        for column in range(width):
            everywhere += abs(float(values[row, column]))
            inside += abs(float(values[row, column])) if mask[row, column] else 0.0
    return inside / everywhere if everywhere > 0 else 0.0


def relevance_rank(attribution: Tensor, mask: Tensor) -> float:
    height, width = mask.shape
    values = summed(attribution, (height, width))[0, 0]
    places = sorted((-abs(float(values[y, x])), y, x) for y in range(height) for x in range(width))
    size = int(mask.sum())
    hits = sum(1 for _, y, x in places[:size] if mask[y, x])
    return hits / size if size else 0.0


def regions(mask: Tensor) -> list[list[tuple[int, int]]]:
    """The connected places of a mask (H, W), by flooding; those with the first places first."""
    height, width = mask.shape
    seen: set[tuple[int, int]] = set()
    found = []
    for start in ((y, x) for y in range(height) for x in range(width)):
        if not mask[start] or start in seen:
            continue
        region, waiting = [], [start]
        seen.add(start)
        while waiting:
            y, x = waiting.pop()
            region.append((y, x))
            for place in ((y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)):
                inside = 0 <= place[0] < height and 0 <= place[1] < width
                if inside and mask[place] and place not in seen:
                    seen.add(place)
                    waiting.append(place)
        found.append(region)
    return found


def overlap(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> float:
    """Intersection over union of the boxes around two regions, counted place by place."""
    boxes = []
    for region in (one, other):
        rows, columns = [y for y, _ in region], [x for _, x in region]
        box = {(y, x) for y in range(min(rows), max(rows) + 1) for x in range(min(columns), max(columns) + 1)}
        boxes.append(box)
    return len(boxes[0] & boxes[1]) / len(boxes[0] | boxes[1])


def box_iou(attribution: Tensor, mask: Tensor, threshold: float) -> float:
    scaled = reference.minmax(summed(attribution, tuple(mask.shape)))[0, 0]
    largest: list[tuple[int, int]] = []
    for region in regions(scaled > threshold):
        if len(region) > len(largest):
            largest = region
    return max((overlap(largest, region) for region in regions(mask)), default=0.0) if largest else 0.0


def localization_iou(attribution: Tensor, mask: Tensor) -> float:
    return max(box_iou(attribution, mask, step / 20) for step in range(20))


def localization_accuracy(attribution: Tensor, mask: Tensor) -> float:
    return 1.0 if localization_iou(attribution, mask) >= 0.5 else 0.0


def pixel_average_precision(attribution: Tensor, mask: Tensor) -> float:
    values = numbers(summed(attribution, tuple(mask.shape)))
    labels = [bool(label) for label in mask.reshape(-1)]
    area = recall = 0.0
    for threshold in sorted(set(values), reverse=True):
        chosen = [label for value, label in zip(values, labels, strict=True) if value >= threshold]
        before, recall = recall, sum(chosen) / sum(labels) if any(labels) else 0.0
        area += (recall - before) * sum(chosen) / len(chosen)
    return area


def imputed(image: Tensor, missing: list[tuple[int, int]]) -> Tensor:
    """Each missing pixel the weighted mean of its neighbours, by a dense system of equations."""
    _, channels, height, width = image.shape
    number = {place: i for i, place in enumerate(missing)}
    matrix = torch.zeros(len(missing), len(missing), dtype=torch.float64)
    known = torch.zeros(len(missing), channels, dtype=torch.float64)
    for (y, x), i in number.items():
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                place = (y + down, x + right)
                if (down, right) == (0, 0) or not (0 <= place[0] < height and 0 <= place[1] < width):
                    continue
                weight = 1 / 12 if down and right else 1 / 6
                matrix[i, i] += weight
                if place in number:
                    matrix[i, number[place]] -= weight
                else:
                    known[i] += weight * image[0, :, place[0], place[1]]
    result = image.clone()
    for (y, x), values in zip(missing, torch.linalg.solve(matrix, known), strict=True):
        result[0, :, y, x] = values
    return result


def after_removal(confidence: Confidence, image: Tensor, attribution: Tensor, is_most: bool) -> float:
    """The mean confidence after a share of the pixels is imputed, with noise."""
    _, _, height, width = image.shape
    values = summed(attribution, (height, width))[0, 0]
    places = sorted((-float(values[y, x]), y, x) for y in range(height) for x in range(width))
    noise = torch.randn((4, *image.shape[1:]), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    confidences = []
    for percentile, added in zip((20, 40, 60, 80), noise, strict=True):
        stay = round(len(places) * percentile / 100)
        removed = places[: len(places) - stay] if is_most else places[stay:]
        missing = [(y, x) for _, y, x in removed]
        shown = imputed(image, missing)
        for y, x in missing:
            shown[0, :, y, x] += 0.01 * added[:, y, x]
        confidences.append(confidence(shown))
    return sum(confidences) / len(confidences)


def road(confidence: Confidence, image: Tensor, attribution: Tensor) -> float:
    least, most = (after_removal(confidence, image, attribution, is_most) for is_most in (False, True))
    return (least - most) / 2


def road_most_relevant_first(confidence: Confidence, image: Tensor, attribution: Tensor) -> float:
    return after_removal(confidence, image, attribution, True) - confidence(image)


def road_least_relevant_first(confidence: Confidence, image: Tensor, attribution: Tensor) -> float:
    return after_removal(confidence, image, attribution, False) - confidence(image)


def infidelity(confidence: Confidence, image: Tensor, black: Tensor, attribution: Tensor) -> float:
    _, _, height, width = image.shape
    values = summed(attribution, (height, width))[0, 0]
    corners = torch.rand((20, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tall, wide = max(1, round(height / 4)), max(1, round(width / 4))
    pairs = []
    for vertical, horizontal in corners.tolist():
        top, left = int(vertical * (height - tall + 1)), int(horizontal * (width - wide + 1))
        hidden, forecast = image.clone(), 0.0
        for y in range(top, top + tall):
            for x in range(left, left + wide):
                hidden[:, :, y, x] = black[:, :, y, x]
                forecast += float(values[y, x])
        pairs.append((forecast, confidence(image) - confidence(hidden)))
    squares = sum(forecast**2 for forecast, _ in pairs)
    beta = sum(forecast * lost for forecast, lost in pairs) / squares if squares > 0 else 0.0
    return sum((beta * forecast - lost) ** 2 for forecast, lost in pairs) / len(pairs)


def sensitivity_max(image: Tensor, attribution: Tensor, explain: Explain) -> float:
    size, generator = tuple(image.shape[2:]), torch.Generator().manual_seed(0)
    values = numbers(summed(attribution, size))
    norm = math.sqrt(sum(value**2 for value in values))
    changes = []
    for _ in range(10):
        noise = 0.02 * (2 * torch.rand((1, *image.shape[1:]), dtype=torch.float64, generator=generator) - 1)
        others = numbers(summed(explain(image + noise), size))
        change = math.sqrt(sum((a - b) ** 2 for a, b in zip(values, others, strict=True)))
        changes.append(change / (norm or 1.0))
    return max(changes)


def model_randomization(image: Tensor, attribution: Tensor, on_another_model: Explain) -> float:
    size = tuple(image.shape[2:])
    return rank_correlation(numbers(summed(attribution, size)), numbers(summed(on_another_model(image), size)))


def random_logit(image: Tensor, attribution: Tensor, for_another_class: Explain) -> float:
    size = tuple(image.shape[2:])
    return rank_correlation(numbers(summed(attribution, size)), numbers(summed(for_another_class(image), size)))


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's, of the absolute values."""
    ranks = []
    for values in (one, other):
        sizes = [abs(value) for value in values]
        # Halfway between the values below and those that are not above.
        ranks.append([sum(b < a for b in sizes) / 2 + sum(b <= a for b in sizes) / 2 for a in sizes])
    means = [sum(each) / len(each) for each in ranks]
    if max(ranks[0]) == min(ranks[0]):
        return 1.0
    if max(ranks[1]) == min(ranks[1]):
        return 0.0
    products = {(i, j): 0.0 for i in (0, 1) for j in (0, 1)}
    for both in zip(*ranks, strict=True):
        for i, j in products:
            products[i, j] += (both[i] - means[i]) * (both[j] - means[j])
    return products[0, 1] / math.sqrt(products[0, 0] * products[1, 1])
