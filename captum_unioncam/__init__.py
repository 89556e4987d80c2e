"""UnionCAM class activation maps for Captum.

The public names of ``_public.py``, loaded when one is first used: what needs no PyTorch, as the command's help, does
not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from captum_unioncam._public import *  # noqa: F403
else:

    def __getattr__(name: str) -> object:
        public = {key: value for key, value in vars(import_module(f"{__name__}._public")).items() if key[0] != "_"}
        if name == "__all__":
            return sorted(public)
        if name not in public:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return public[name]

    def __dir__() -> list[str]:
        return [*globals(), *__getattr__("__all__")]
