r"""How faithful an attribution is to the model, and how well it finds the object; one value for each example.

The functions are called as those of ``captum.metrics``, and take any attributions that can be upsampled to the inputs:
a layer method's (N, K, \*spatial) at any resolution, or an input method's; channels are summed. With
:math:`m = \text{minmax}(\text{up}(\text{attribution}))`, the class confidence is that of UnionCAM itself.

Example::

    >>> from captum_unioncam import LayerUnionCam, metrics
    >>> attr = LayerUnionCam(model, layer).attribute(images, target=labels)
    >>> average_drop = 100 * metrics.confidence_drop(model, images, attr, labels).mean()
    >>> area = metrics.insertion(model, images, attr, labels)  # (N,)

One file a family of metrics; ``table.py`` lists them for evaluations. Imports engine, system, torch and captum. Every
module of this folder is imported here, so that a new file is all that a new metric needs.
"""

from importlib import import_module
from pkgutil import iter_modules

from captum_unioncam.metrics.attributions import Curve
from captum_unioncam.metrics.faithfulness import confidence_drop, confidence_increase, deletion, insertion
from captum_unioncam.metrics.localization import box_masks, energy_pointing_game, pointing_game

# isort: split
# Behind those above, so that tables begin with them.
from captum_unioncam.metrics.adcc_parts import adcc, coherency, complexity
from captum_unioncam.metrics.boxes import box_ious, localization_accuracy, localization_iou, pixel_average_precision
from captum_unioncam.metrics.gain import confidence_gain
from captum_unioncam.metrics.relevance import relevance_mass, relevance_rank
from captum_unioncam.metrics.remove_and_debias import road, road_least_relevant_first, road_most_relevant_first
from captum_unioncam.metrics.robustness import infidelity, sensitivity_max
from captum_unioncam.metrics.spread import sparseness

__all__ = [
    "Curve",
    "adcc",
    "box_ious",
    "box_masks",
    "coherency",
    "complexity",
    "confidence_drop",
    "confidence_gain",
    "confidence_increase",
    "deletion",
    "energy_pointing_game",
    "infidelity",
    "insertion",
    "localization_accuracy",
    "localization_iou",
    "pixel_average_precision",
    "pointing_game",
    "relevance_mass",
    "relevance_rank",
    "road",
    "road_least_relevant_first",
    "road_most_relevant_first",
    "sensitivity_max",
    "sparseness",
]

# And those of new files behind all.
for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
