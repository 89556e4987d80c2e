"""Networks of timm and of Hugging Face with random weights: the layer that is found, and the map that is made there.

Each is small. What is expected of a layer, its grid and the tokens in front of it, is written down here; the map is
compared with one of activations and gradients of a pass of its own, put in their places one by one.
"""

import pytest
import torch
from torch import nn

from captum_unioncam import LayerHiResCam, find_spatial_layer
from captum_unioncam.attr.find_layer import spatial_layers

timm = pytest.importorskip("timm")

# Arguments, the layer, and its layout: "maps", "last" for channels last, or the number of tokens in front. None: what
# attention without training mixes on 2 x 2 places shows them by chance, so that one of several layers is found.
NETWORKS = {
    "vit_tiny_patch16_224": ({"img_size": 64, "depth": 2}, "blocks.1.norm1", 1),
    "vit_base_patch16_clip_224": ({"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 2}, "blocks.1.norm1", 1),
    "vit_small_patch14_reg4_dinov2": ({"img_size": 56, "depth": 2}, "blocks.1.norm1", 5),
    "vit_small_patch16_rope_224": ({"img_size": 64, "depth": 2}, "blocks.1.norm1", 1),
    "deit_tiny_patch16_224": ({"img_size": 64, "depth": 2}, "blocks.1.norm1", 1),
    "deit_tiny_distilled_patch16_224": ({"img_size": 64, "depth": 2}, "blocks.1.norm1", 2),
    "deit3_small_patch16_224": ({"img_size": 64, "depth": 2}, "blocks.1.norm1", 1),
    "flexivit_small": ({"img_size": 64, "depth": 2}, "blocks.1.norm1", 1),
    "eva02_tiny_patch14_224": ({"img_size": 56, "depth": 2}, "norm", 1),
    "beit_base_patch16_224": ({"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 2}, "norm", 1),
    "beitv2_base_patch16_224": ({"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 2}, "norm", 1),
    "cait_xxs24_224": ({"img_size": 64, "depth": 2}, "blocks_token_only.1.norm1", 1),
    "xcit_nano_12_p16_224": ({"img_size": 64, "depth": 2}, "cls_attn_blocks.1.norm1", 1),
    "convit_tiny": ({"img_size": 64, "depth": 2, "local_up_to_layer": 1}, "blocks.1.norm1", 1),
    "tnt_s_patch16_224": ({"img_size": 64, "depth": 1}, "blocks.0.norm_out", 1),
    "hiera_tiny_224": ({"img_size": 64, "stages": (1, 1, 1, 1)}, "blocks.3", 0),
    "mixer_s32_224": ({"img_size": 64}, "norm", 0),
    "resmlp_12_224": ({"img_size": 64}, "norm", 0),
    "gmlp_ti16_224": ({"img_size": 64}, "norm", 0),
    "twins_svt_small": ({"img_size": 64, "depths": (1, 1, 1, 1)}, "norm", 0),
    "mvitv2_tiny": ({"img_size": 64}, "norm", 0),
    "swin_tiny_patch4_window7_224": ({"img_size": 64, "depths": (1, 1, 1, 1)}, "norm", "last"),
    "swin_s3_tiny_224": ({"img_size": 64, "depths": (1, 1, 1, 1)}, "norm", "last"),
    "swinv2_tiny_window8_256": ({"img_size": 64, "depths": (1, 1, 1, 1)}, "norm", "last"),
    "sequencer2d_s": ({"layers": (1, 1, 1, 1)}, "norm", "last"),
    "convnext_atto": ({}, "norm_pre", "maps"),
    "convnextv2_atto": ({}, "norm_pre", "maps"),
    "pvt_v2_b0": ({}, "stages", "maps"),
    "maxvit_pico_rw_256": ({"img_size": 64}, None, "maps"),
    "coatnet_pico_rw_224": ({"img_size": 64}, "norm", "maps"),
    "mobilevit_xxs": ({}, "final_conv", "maps"),
    "mobilevitv2_050": ({}, "stages.4.0", "maps"),
    "resnet10t": ({}, "layer4", "maps"),
    "mobilenetv3_small_050": ({}, "blocks", "maps"),
    "efficientnet_b0": ({}, "bn2", "maps"),
    "regnetx_002": ({}, "final_conv", "maps"),
    "poolformer_s12": ({}, "stages", "maps"),
    "edgenext_xx_small": ({}, "norm_pre", "maps"),
    "efficientvit_b0": ({}, "head.in_conv", "maps"),
    "ghostnet_050": ({}, "blocks", "maps"),
    "inception_next_atto": ({}, "stages", "maps"),
    "fastvit_t8": ({}, "final_conv", "maps"),
    "starnet_s1": ({}, "norm", "maps"),
    "repvit_m0_9": ({}, "stages", "maps"),
}


def randomized(net):
    """Without the zeros and the tiny scales that new networks have, which hide what trained ones do."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "gamma" in name or name.endswith((".ls1", ".ls2", ".layer_scale")):
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() > 1 and not parameter.any():
                parameter.normal_(std=0.1)
    return net.eval()


def explained(net, inputs, target, layer, layout):
    """HiResCAM by a pass of its own: what is positive of the sum over the channels of activations times gradients."""
    kept = []
    handle = layer.register_forward_hook(lambda _module, _args, output: kept.append(output))
    output = net(inputs)
    handle.remove()
    output = output if isinstance(output, torch.Tensor) else output.logits
    (gradient,) = torch.autograd.grad(output[:, target].sum(), kept[0])
    product = kept[0].detach() * gradient
    if layout == "maps":
        return product.sum(1).clamp(min=0)
    if layout == "last":
        return product.sum(-1).clamp(min=0)
    side = round((product.shape[1] - layout) ** 0.5)
    made = torch.zeros(len(product), side, side)
    for place in range(side * side):
        made[:, place // side, place % side] = product[:, layout + place].sum(-1)
    return made.clamp(min=0)


def check(net, size, expected, layout):
    inputs = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    name, layer = find_spatial_layer(net, inputs)
    assert expected is None or name.endswith(expected)
    # Of some target, the map is not 0 everywhere: what is negative is not shown.
    made = [explained(net, inputs, target, layer, layout) for target in range(5)]
    target = max(range(5), key=lambda target: made[target].amax((1, 2)).min())
    attr = LayerHiResCam(net, layer).attribute(inputs, target)
    judged = made[target]
    assert attr.shape == (2, 1, *judged.shape[1:])
    assert judged.abs().max() > 0
    assert torch.allclose(attr[:, 0], judged, rtol=1e-3, atol=1e-4 * judged.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_timm(name):
    arguments, layer, layout = NETWORKS[name]
    torch.manual_seed(0)
    net = randomized(timm.create_model(name, num_classes=5, **arguments))
    assert isinstance(net, nn.Module)
    check(net, arguments.get("img_size", 64), layer, layout)


def test_tokens_in_the_order_of_windows_are_no_maps():
    """Hiera puts them in the order of the image behind its last pooling only."""
    net = randomized(timm.create_model("hiera_tiny_224", stages=(1, 1, 2, 1)))
    inputs = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    in_order = ("patch_embed", "blocks.4")
    found = spatial_layers(net, inputs)
    assert [name for name in found if not name.startswith(in_order)] == []
    assert "blocks.4" in found
    with pytest.raises(ValueError, match=r"'blocks.2' .* has no token for each position"):
        LayerHiResCam(net, "blocks.2").attribute(inputs, 0)
