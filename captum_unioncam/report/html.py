"""Self-contained HTML pages: no network, no other files, and no script but the page's own, known by its hash."""

import base64
import hashlib
import io
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

_TEMPLATES = Environment(
    loader=PackageLoader("captum_unioncam.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> bytes:
    """Fills in one of the package's templates.

    Args:
        template (str): Its file name, such as "report.html".
        values (Any): The template's variables. Text is escaped.

    Returns:
        *bytes*: The page, in UTF-8.
    """
    # File names that are not UTF-8 contain lone surrogates, which UTF-8 cannot encode.
    return _TEMPLATES.get_template(template).render(values).encode(errors="replace")


def script(name: str) -> dict[str, str]:
    """One of the package's scripts, which lie beside the templates.

    Returns:
        *dict*: "text", as it is in the page, and "hash", of SHA-256 in base64, by which the page's policy allows this
        script and no other.
    """
    text = files("captum_unioncam.report").joinpath("templates", name).read_text("utf-8")
    # It is the package's own, and not escaped.
    return {"text": Markup(text), "hash": base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}


def data_uri(media_type: str, content: bytes) -> str:
    """The file as a ``data:`` URI, such as for the ``src`` of an ``<img>``."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def jpeg_uri(picture: Image.Image) -> str:
    """The image, in mode RGB, as a ``data:`` URI of a JPEG file, smaller than PNG: a page may hold hundreds."""
    return picture_uri(picture, "jpeg", quality=85)


def picture_uri(picture: Image.Image, form: str, **options: Any) -> str:
    """The image as a ``data:`` URI.

    Args:
        picture (PIL.Image.Image): In a mode that the format has.
        form (str): "jpeg" or "png".
        options (Any): Of the file, as Pillow takes them.
    """
    file = io.BytesIO()
    picture.save(file, form, **options)
    return data_uri(f"image/{form}", file.getvalue())
