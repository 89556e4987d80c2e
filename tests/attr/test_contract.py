"""The contract of layer methods, for each of this package's by name.

``test_<name>.py`` holds what is the method's own: ``reference``, the method in plain loops, and ``TRAITS``.
"""

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from captum_unioncam.testing import LAYER_CHECKS, Traits, check_layer_method
from tests.attr import METHODS, OWN

pytestmark = pytest.mark.usefixtures("one_thread")


def own_tests(cls):
    name = f"tests.attr.test_{cls.name}"
    return import_module(name) if find_spec(name) else SimpleNamespace(reference=None, TRAITS=Traits())


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("name", OWN)
def test_contract(name, check):
    cls = OWN[name]
    own = own_tests(cls)
    arguments = {**own.TRAITS.arguments, **cls.variants.get(name, {})}
    check_layer_method(cls, own.reference, replace(own.TRAITS, arguments=arguments), [check])


def test_every_method_has_a_reference():
    assert [cls for cls in METHODS if own_tests(cls).reference is None] == []
