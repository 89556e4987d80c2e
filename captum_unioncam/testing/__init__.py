"""The contract of layer attribution methods, as checks that any test runner or script can call.

``check_layer_method`` runs them; each of this package's own methods passes. Imports ``attr``, torch and captum.
``contract.py`` says how a check is made, ``*_checks.py`` hold them, ``networks.py`` what is explained in them, and
``devices.py`` the devices that a machine without any pretends to have.
"""

# Each lists its checks as it is imported.
from captum_unioncam.testing import call_checks, device_checks, map_checks, state_checks  # noqa: F401
from captum_unioncam.testing.contract import LAYER_CHECKS, Subject, Traits, check_layer_method
from captum_unioncam.testing.devices import PretendedDevices

__all__ = ["LAYER_CHECKS", "PretendedDevices", "Subject", "Traits", "check_layer_method"]
