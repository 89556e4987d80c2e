"""Networks of Hugging Face with random weights, of small configurations: the layer that is found, and its map."""

import pytest
import torch

from tests.models.test_timm import check, randomized

hf = pytest.importorskip("transformers")

_VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
_SWIN = {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}

# What the layer's name ends with, and its layout.
NETWORKS = {
    "ViT": (_VIT, "1.layernorm_before", 1),
    "DeiT": (_VIT, "1.layernorm_before", 2),
    "ViTMSN": (_VIT, "1.layernorm_before", 1),
    "Dinov2": ({**_VIT, "mlp_ratio": 2}, "layernorm", 1),
    "Dinov2WithRegisters": ({**_VIT, "mlp_ratio": 2, "num_register_tokens": 4}, "layernorm", 5),
    "Beit": (_VIT, "beit.layernorm", 1),
    "Swin": (_SWIN, "layernorm", 0),
    "Swinv2": (_SWIN, "layernorm", 0),
    "ConvNext": (_STAGES, "encoder.stages.3", "maps"),
    "ConvNextV2": (_STAGES, "encoder.stages.3", "maps"),
    "ResNet": ({**_STAGES, "embedding_size": 8, "layer_type": "basic"}, "encoder.stages.3", "maps"),
    "Segformer": (
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]},
        "stages.3",
        "maps",
    ),
    "MobileViT": ({"image_size": 64}, "conv_1x1_exp", "maps"),
    "MobileNetV2": ({}, "conv_1x1", "maps"),
    "RegNet": ({**_STAGES, "embedding_size": 8, "groups_width": 8}, "encoder.stages.3", "maps"),
    "PoolFormer": ({**_STAGES}, "norm", "maps"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_hugging_face(name):
    settings, layer, layout = NETWORKS[name]
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")(**settings, num_labels=5)
    net = randomized(getattr(hf, f"{name}ForImageClassification")(config))
    check(net, 64, layer, layout)
