"""Which colours and opacities of a heat map over a photo can be read: ``python -m benchmarks.overlays``.

Maps of random 7x7 values are laid over dark, light and colourful photos (of scikit-image, in the public domain). For
pairs of places whose values differ by 0.15 or more, two readers say which is higher: one looks up each place's colour
on the colour bar (the nearest in CIELAB), with normal vision and with each of the three kinds of colour blindness
(Machado et al. 2009), the other sees lightness alone, as in gray print. ``order`` is the share of pairs that they get
right, of the kind of photo and the reader with the fewest. ``detail`` is how much of the photo's contrast is left where
the map is above and below its middle. ``colour at the top`` is the chroma in CIELAB where the map is above 0.9: a
maximum without colour is washed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray, rgb2lab
from torch.nn.functional import interpolate

from captum_unioncam.report.images import Look, Pixels

SIDE = 160
PHOTOS = {
    "dark": ["hubble_deep_field.jpg", "rocket.jpg"],
    "light": ["page.png", "ihc.png"],
    "colourful": ["astronaut.png", "coffee.png", "chelsea.png"],
}
MAPS, PAIRS, LEAST_DIFFERENCE = 3, 700, 0.15
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
COLORMAPS = "glow", "hot", "YlOrRd_r", "inferno", "plasma", "viridis", "cividis", "turbo", "jet"

Blend = Callable[[Pixels, Pixels], Pixels]
"""Gray pixels and values to colours."""


def constant(colormap: str, opacity: float) -> Blend:
    """The same opacity everywhere, over the photo in gray."""
    return lambda gray, values: (1 - opacity) * gray[..., None] + opacity * Look(colormap).colors(values)[..., :3]


def photos(kind: str) -> Iterator[Pixels]:
    """The middle square of each photo, (SIDE, SIDE, 3), in [0, 1]."""
    for name in PHOTOS[kind]:
        with Image.open(Path(skimage.data.__file__).parent / name) as photo:
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            square = photo.convert("RGB").crop((left, top, left + side, top + side))
        yield np.asarray(square.resize((SIDE, SIDE))) / 255


def maps() -> list[Pixels]:
    """Smooth maps from 0 to 1."""
    values = torch.rand(MAPS, 1, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    upsampled = interpolate(values, (SIDE, SIDE), mode="bilinear").numpy()[:, 0]
    return [(each - each.min()) / (each.max() - each.min()) for each in upsampled]


def seen(colors: Pixels, vision: str) -> Pixels:
    """CIELAB of colours, as an eye of this kind sees them."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.transpose(VISION[vision])).clip(0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


def right(read: Pixels, values: Pixels) -> float:
    """The share of pairs (2, n) whose order is read as it is."""
    return float(np.mean(np.sign(read[0] - read[1]) == np.sign(values[0] - values[1])))


def judged(blend: Blend) -> dict[str, float]:
    """The measures of one way to lay maps over photos."""
    generator = np.random.default_rng(0)
    steps = np.linspace(0, 1, 101)
    shares: dict[str, list[float]] = {}
    details: dict[bool, list[float]] = {True: [], False: []}
    chromas = []
    for kind in PHOTOS:
        for photo in photos(kind):
            gray = rgb2gray(photo)
            bar = blend(np.full((1, len(steps)), photo.mean()), steps[None])
            for values in maps():
                colors = blend(gray, values)
                before, after = (
                    lightness - gaussian_filter(lightness, 4)
                    for lightness in (rgb2lab(photo)[..., 0], rgb2lab(colors)[..., 0])
                )
                for high, found in details.items():
                    where = (values > 0.5) == high
                    # A photo without contrast there has none to keep.
                    if before[where].std() > 1:
                        found.append((before[where] * after[where]).sum() / (before[where] ** 2).sum())
                chromas.append(np.linalg.norm(rgb2lab(colors)[values > 0.9, 1:], axis=-1).mean())
                places = generator.integers(0, values.size, (2, PAIRS))
                different = np.abs(values.ravel()[places[0]] - values.ravel()[places[1]]) > LEAST_DIFFERENCE
                places, of_pairs = places[:, different], values.ravel()[places[:, different]]
                # The eye takes in a place with what is around it.
                blurred = gaussian_filter(colors, (2, 2, 0)).reshape(-1, 3)[places]
                for vision in VISION:
                    lab, marks = seen(blurred, vision), seen(bar, vision)[0]
                    read = steps[((lab[..., None, :] - marks) ** 2).sum(-1).argmin(-1)]
                    shares.setdefault(f"{kind}, {vision}", []).append(right(read, of_pairs))
                shares.setdefault(f"{kind}, lightness", []).append(right(rgb2lab(blurred)[..., 0], of_pairs))
    means = {reader: float(np.mean(found)) for reader, found in shares.items()}
    lightness = min(mean for reader, mean in means.items() if reader.endswith("lightness"))
    bar_alone = min(mean for reader, mean in means.items() if not reader.endswith("lightness"))
    kept = {high: float(np.mean(found)) for high, found in details.items()}
    return {
        "bar": bar_alone,
        "lightness": lightness,
        "top": float(np.mean(chromas)),
        "high": kept[True],
        "low": kept[False],
    }


def main() -> None:
    """Prints the table, the best first."""
    ways = {f"{name}, rising to 0.6": Look(name).blend for name in COLORMAPS}
    ways |= {f"{name}, 0.55 everywhere": constant(name, 0.55) for name in ("glow", "inferno", "jet")}
    rows = {name: judged(blend) for name, blend in ways.items()}
    columns = "order by the bar", "order by lightness", "colour at the top", "detail above", "detail below"
    print(f"| colours, opacity | {' | '.join(columns)} |\n{'| --- ' * (len(columns) + 1)}|")
    for name, row in sorted(rows.items(), key=lambda item: -min(item[1]["bar"], item[1]["lightness"])):
        order = f"{row['bar']:.3f} | {row['lightness']:.3f}"
        print(f"| {name} | {order} | {row['top']:.0f} | {row['high']:.2f} | {row['low']:.2f} |")


if __name__ == "__main__":
    main()
