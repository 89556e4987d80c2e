"""Layer outputs that are not maps (tokens, channels last, windows), and how they become maps (N, K, *spatial).

``base.py`` has the transforms, and each library of models a file that knows its layers. ``with_maps.py`` is for methods
that know no transforms.
"""
