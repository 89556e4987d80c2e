"""Attribution methods: one file a method, named as the method. ``base.py`` is what they share.

Imports engine, system, torch and captum. Subclasses of ``CamAttribution`` register by themselves: every module of this
folder is imported here, so that a new file is all that a new method needs.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
