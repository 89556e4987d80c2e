"""Data sets of labelled images, for evaluating attribution methods: listed when opened, read one image at a time.

One file for each layout; ``open.py`` detects it. Imports demo and system.
"""

from captum_unioncam.datasets.pictures import open_picture

__all__ = ["open_picture"]
