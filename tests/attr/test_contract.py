"""The contract of layer methods, for each of this package's by name.

``test_<name>.py`` holds what is the method's own: ``reference``, the method in plain loops, and ``TRAITS``.
"""

from dataclasses import replace
from importlib import import_module

import pytest

from captum_unioncam.testing import LAYER_CHECKS, check_layer_method
from tests.attr import OWN

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("name", OWN)
def test_contract(name, check):
    cls = OWN[name]
    of_method = import_module(f"tests.attr.test_{cls.name}")
    traits = of_method.TRAITS
    arguments = {**traits.arguments, **cls.variants.get(name, {})}
    check_layer_method(cls, of_method.reference, replace(traits, arguments=arguments), [check])
