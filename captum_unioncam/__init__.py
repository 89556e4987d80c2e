"""UnionCAM class activation maps for Captum.

The public names, loaded when they are first used: what needs no PyTorch, as the command's help, does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captum_unioncam.attr.ablation_cam import LayerAblationCam
    from captum_unioncam.attr.ablation_cam_plus_plus import LayerAblationCamPlusPlus
    from captum_unioncam.attr.augmented_grad_cam import LayerAugmentedGradCam
    from captum_unioncam.attr.base import TailDetails
    from captum_unioncam.attr.cam import LayerLinearCam
    from captum_unioncam.attr.denoised_grad_cam import LayerDenoisedGradCam
    from captum_unioncam.attr.eigen_cam import LayerEigenCam
    from captum_unioncam.attr.fd_cam import LayerFDCam
    from captum_unioncam.attr.feature_cam import LayerFeatureCam
    from captum_unioncam.attr.fimf_score_cam import LayerFimfScoreCam
    from captum_unioncam.attr.find_layer import find_spatial_layer
    from captum_unioncam.attr.fuse import fuse
    from captum_unioncam.attr.grad_cam_plus_plus import LayerGradCamPlusPlus
    from captum_unioncam.attr.grad_plus_plus_score_cam import LayerGradPlusPlusScoreCam
    from captum_unioncam.attr.group_cam import LayerGroupCam
    from captum_unioncam.attr.hires_cam import LayerHiResCam
    from captum_unioncam.attr.integrated_grad_cam import LayerIntegratedGradCam
    from captum_unioncam.attr.is_cam import LayerISCam
    from captum_unioncam.attr.layer_cam import LayerLayerCam
    from captum_unioncam.attr.recipro_cam import LayerReciproCam
    from captum_unioncam.attr.rise import Rise
    from captum_unioncam.attr.score_cam import LayerScoreCam
    from captum_unioncam.attr.smooth_grad_cam_plus_plus import LayerSmoothGradCamPlusPlus
    from captum_unioncam.attr.ss_cam import LayerSSCam
    from captum_unioncam.attr.union_cam import LayerUnionCam, UnionCamDetails
    from captum_unioncam.attr.upsampled import UpsampledAttribution
    from captum_unioncam.attr.vit_recipro_cam import LayerVitReciproCam
    from captum_unioncam.attr.x_grad_cam import LayerXGradCam
    from captum_unioncam.engine.layouts.base import channels_last_to_maps, tokens_to_maps
    from captum_unioncam.engine.sharing import shared_passes
    from captum_unioncam.report.notebooks import explain, show

__version__ = "0.1.0"

_HOMES = {
    "LayerAblationCam": "attr.ablation_cam",
    "LayerAblationCamPlusPlus": "attr.ablation_cam_plus_plus",
    "LayerAugmentedGradCam": "attr.augmented_grad_cam",
    "LayerDenoisedGradCam": "attr.denoised_grad_cam",
    "LayerEigenCam": "attr.eigen_cam",
    "LayerFDCam": "attr.fd_cam",
    "LayerFeatureCam": "attr.feature_cam",
    "LayerFimfScoreCam": "attr.fimf_score_cam",
    "LayerGradCamPlusPlus": "attr.grad_cam_plus_plus",
    "LayerGradPlusPlusScoreCam": "attr.grad_plus_plus_score_cam",
    "LayerGroupCam": "attr.group_cam",
    "LayerHiResCam": "attr.hires_cam",
    "LayerISCam": "attr.is_cam",
    "LayerIntegratedGradCam": "attr.integrated_grad_cam",
    "LayerLayerCam": "attr.layer_cam",
    "LayerLinearCam": "attr.cam",
    "LayerReciproCam": "attr.recipro_cam",
    "LayerSSCam": "attr.ss_cam",
    "LayerScoreCam": "attr.score_cam",
    "LayerSmoothGradCamPlusPlus": "attr.smooth_grad_cam_plus_plus",
    "LayerUnionCam": "attr.union_cam",
    "LayerVitReciproCam": "attr.vit_recipro_cam",
    "LayerXGradCam": "attr.x_grad_cam",
    "Rise": "attr.rise",
    "TailDetails": "attr.base",
    "UnionCamDetails": "attr.union_cam",
    "UpsampledAttribution": "attr.upsampled",
    "channels_last_to_maps": "engine.layouts.base",
    "explain": "report.notebooks",
    "find_spatial_layer": "attr.find_layer",
    "fuse": "attr.fuse",
    "shared_passes": "engine.sharing",
    "show": "report.notebooks",
    "tokens_to_maps": "engine.layouts.base",
}
__all__ = [
    "LayerAblationCam",
    "LayerAblationCamPlusPlus",
    "LayerAugmentedGradCam",
    "LayerDenoisedGradCam",
    "LayerEigenCam",
    "LayerFDCam",
    "LayerFeatureCam",
    "LayerFimfScoreCam",
    "LayerGradCamPlusPlus",
    "LayerGradPlusPlusScoreCam",
    "LayerGroupCam",
    "LayerHiResCam",
    "LayerISCam",
    "LayerIntegratedGradCam",
    "LayerLayerCam",
    "LayerLinearCam",
    "LayerReciproCam",
    "LayerSSCam",
    "LayerScoreCam",
    "LayerSmoothGradCamPlusPlus",
    "LayerUnionCam",
    "LayerVitReciproCam",
    "LayerXGradCam",
    "Rise",
    "TailDetails",
    "UnionCamDetails",
    "UpsampledAttribution",
    "channels_last_to_maps",
    "explain",
    "find_spatial_layer",
    "fuse",
    "shared_passes",
    "show",
    "tokens_to_maps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
