"""UnionCAM class activation maps for Captum."""

from captum_unioncam.denoised_grad_cam import LayerDenoisedGradCam
from captum_unioncam.layers import find_spatial_layer
from captum_unioncam.layouts import channels_last_to_maps, tokens_to_maps
from captum_unioncam.maps import fuse
from captum_unioncam.score_cam import LayerScoreCam
from captum_unioncam.union_cam import LayerUnionCam, UnionCamDetails
from captum_unioncam.upsampled import UpsampledAttribution

__all__ = [
    "LayerDenoisedGradCam",
    "LayerScoreCam",
    "LayerUnionCam",
    "UnionCamDetails",
    "UpsampledAttribution",
    "channels_last_to_maps",
    "find_spatial_layer",
    "fuse",
    "tokens_to_maps",
]
__version__ = "0.1.0"
