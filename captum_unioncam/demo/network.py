"""The demo network: a small classifier like VGG, for the images of :mod:`.pictures`."""

from torch import Tensor, nn

from captum_unioncam.demo.pictures import CLASS_NAMES, PICTURE_SIZE

EXPLAINED_LAYER = "features.15"
"""The layer to explain: the last pooling, (N, 64, 7, 7), whose positions the head reads one by one.

In front of the pooling, three of four gradients are 0, so theta has no effect up to 75."""


class DemoNet(nn.Module):
    r"""Convolutions and pooling, then a fully connected head on the flattened last feature maps.

    As in VGG there is no global average pooling, so that gradients vary over the space of
    :data:`EXPLAINED_LAYER`.

    Shape:
        - Input: (N, 3, 112, 112), RGB in [0, 1] and not normalised further: black is zeros.
        - Output: (N, 8), one logit for each of :data:`~captum_unioncam.demo.pictures.CLASS_NAMES`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 16),
            nn.MaxPool2d(2),
            *_convolution(16, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 48),
            *_convolution(48, 48),
            nn.MaxPool2d(2),
            *_convolution(48, 64),
            *_convolution(64, 64),
            nn.MaxPool2d(2),
        )
        side = PICTURE_SIZE // 16
        self.classifier = nn.Sequential(
            nn.Linear(64 * side * side, 40),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Linear(40, len(CLASS_NAMES)),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _convolution(channels_in: int, channels_out: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(inplace=True)
