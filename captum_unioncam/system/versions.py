"""The versions of the packages that the numbers depend on."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, entry_points, version

_PACKAGES = ("captum-unioncam", "captum", "torch", "torchvision", "pillow")

_PLUGINS = ("captum_unioncam.methods", "captum_unioncam.metrics")


def package_versions(*more: str) -> dict[str, str]:
    """The versions of these packages, of ``more``, and of plugins, of those that are installed."""
    plugins = {point.dist.name for group in _PLUGINS for point in entry_points(group=group) if point.dist}
    found = {}
    for package in (*_PACKAGES, *more, *sorted(plugins)):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
