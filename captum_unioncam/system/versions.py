"""The versions of the packages that the numbers depend on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("captum-unioncam", "captum", "torch", "torchvision", "pillow")


def package_versions(*more: str) -> dict[str, str]:
    """The versions of those that are installed, and of ``more``."""
    found = {}
    for package in (*_PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
