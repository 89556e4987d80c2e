"""Self-contained HTML pages: no scripts, no network, no other files."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image


def render(template: str, **values: Any) -> bytes:
    """Fills in one of the package's templates.

    Args:
        template (str): Its file name, such as "report.html".
        values (Any): The template's variables. Text is escaped.

    Returns:
        *bytes*: The page, in UTF-8.
    """
    # File names that are not UTF-8 contain lone surrogates, which UTF-8 cannot encode.
    return _templates().get_template(template).render(values).encode(errors="replace")


def data_uri(media_type: str, content: bytes) -> str:
    """The file as a ``data:`` URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def png_uri(content: bytes) -> str:
    """The PNG file as a ``data:`` URI, for the ``src`` of an ``<img>``."""
    return data_uri("image/png", content)


def jpeg_uri(picture: Image.Image) -> str:
    """The picture, in mode RGB, as a ``data:`` URI of a JPEG file, smaller than PNG: a page may hold hundreds."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return data_uri("image/jpeg", file.getvalue())


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("captum_unioncam.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
