"""Opens image files safely, and as viewers show them."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from captum_unioncam.system.errors import Failure, one_line
from captum_unioncam.system.files import check_regular

# Not all of Pillow's formats: for EPS, it runs a program on the file.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

_LARGEST_ASPECT = 50


def open_picture(path: Path, from_pipes: bool = False) -> Image.Image:
    """Opens an image as viewers show it.

    It is rotated by its EXIF orientation and put on white if transparent. 16 bits a channel are scaled to 8. CMYK,
    grayscale and palettes are converted to RGB. The first frame of an animation is taken.

    Args:
        path (Path): A file in one of the usual formats of photos.
        from_pipes (bool): Also read pipes and devices, which may block. Default: False

    Returns:
        *PIL.Image.Image*: In mode RGB, loaded.

    Raises:
        Failure: The file is missing, broken, of an unknown format, or too large; the message begins with the path.

    Examples::

        >>> from pathlib import Path
        >>> from captum_unioncam.datasets import open_picture
        >>> demo.load_picture().save("photo.png")
        >>> image = open_picture(Path("photo.png"))
    """
    with _opened(path, from_pipes) as image:
        return _rgb(path, ImageOps.exif_transpose(image))


def open_mask(path: Path) -> Image.Image:
    """Opens a mask, of one channel or several: what is not zero is an object.

    Args:
        path (Path): A file in one of the formats of images, such as PNG. Of a palette, the numbers count, not the
            colours; an alpha channel does not count.

    Returns:
        *PIL.Image.Image*: In mode "L", 255 on the objects and 0 elsewhere.

    Raises:
        Failure: As :func:`open_picture`.
    """
    with _opened(path) as image:
        values = np.asarray(ImageOps.exif_transpose(image))
        if image.mode in ("LA", "PA", "RGBA"):
            values = values[..., :-1]
        marked = (values != 0).reshape(*values.shape[:2], -1).any(-1)
        return Image.fromarray(np.where(marked, np.uint8(255), np.uint8(0)))


@contextmanager
def _opened(path: Path, from_pipes: bool = False) -> Iterator[Image.Image]:
    """The image while it is read, with failures instead of the errors of reading it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            # Pillow warns above Image.MAX_IMAGE_PIXELS and refuses twice that; here both are errors.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not from_pipes:
                check_regular(path)
            Image.init()
            formats = [name for name in _FORMATS if name in Image.OPEN]
            with path.open("rb") as file, Image.open(file, formats=formats) as image:
                _check_shape(path, image.size)
                yield image
    except Failure:
        raise
    except FileNotFoundError as error:
        raise Failure(f"{path}: does not exist; check the path.") from error
    except IsADirectoryError as error:
        raise Failure(f"{path}: is a folder; give the images in it, such as {path / '*.jpg'}.") from error
    except PermissionError as error:
        raise Failure(f"{path}: permission denied; make the file readable.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Failure(f"{path}: {_too_many_pixels(error)}; shrink it.") from error
    except UnidentifiedImageError as error:
        raise Failure(f"{path}: is not an image in a known format; convert it to JPEG or PNG.") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise Failure(f"{path}: {error.strerror}; give an image.") from error
        # Pillow's decoders raise errors of many types for broken data.
        raise Failure(f"{path}: cannot be decoded ({one_line(error)}); save or download it anew.") from error


def _check_shape(path: Path, size: tuple[int, int]) -> None:
    shorter, longer = sorted(size)
    if shorter == 0:
        raise Failure(f"{path}: has no pixels; give another image.")
    if longer > _LARGEST_ASPECT * shorter:
        # torchvision's transforms resize by the shorter side, which would fill the memory.
        raise Failure(f"{path}: is {longer // shorter} times as long as it is wide; crop it.")


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_16_bits(path, image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(path: Path, image: Image.Image) -> Image.Image:
    """Scales grayscale of 16 bits, which Pillow's own conversion to RGB would clip."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise Failure(f"{path}: has more than 16 bits a pixel's channel; save it with 8 or 16.")
    return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")


def _too_many_pixels(error: Exception) -> str:
    limit = f"more than {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f}"
    pixels = re.search(r"\d+", str(error))
    return f"has {int(pixels.group()) / 1e6:.0f} million pixels, {limit}" if pixels else f"has {limit} million pixels"
