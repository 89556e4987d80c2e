"""Trains the demo network on generated images: ``python -m captum_unioncam.demo.train``.

Half of the training images are partly masked, as in masked forward passes. The less of the object is visible, the
closer the target is to uniform, so that the network's confidence in a masked image is meaningful.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from captum_unioncam.demo.data_sets import draw, encoded
from captum_unioncam.demo.network import EXPLAINED_LAYER, DemoNet
from captum_unioncam.demo.pictures import CLASS_NAMES, PICTURE_SIZE, generate
from captum_unioncam.system.files import write_whole

CHUNK = 250
BATCH = 32
FIRST_TRAINING_SEED = 1_000_000
"""Images of smaller seeds are not in the training set."""
TEST_SEED = 10_000

PICTURE_SEED, PICTURE_INDEX = 0, 5
"""The generated image that is the embedded one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="train, and write the weights here")
    parser.add_argument("--picture", type=Path, help="write the demo image here, as PNG")
    parser.add_argument("--pictures", type=int, default=20_000, help="how many to train on")
    parser.add_argument("--epochs", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (options.output or options.picture):
        parser.error("nothing to do: give --output, --picture or both")

    if options.picture:
        write_whole(options.picture, encoded(draw(PICTURE_SEED, PICTURE_INDEX).picture, "PNG", optimize=True))
    if options.output:
        started = time.perf_counter()
        model = train(options.pictures, options.epochs, options.seed)
        write_whole(options.output, save(model.state_dict()))
        print(f"trained in {time.perf_counter() - started:.0f} s")
        images, labels, _ = generate(1000, TEST_SEED)
        print(f"accuracy on 1000 fresh images: {accuracy(model, images, labels):.1%}")


def train(count: int, epochs: int, seed: int) -> DemoNet:
    """Trains a network on ``count`` generated images.

    Args:
        count (int): How many images to generate, rounded up to whole chunks.
        epochs (int): How often to go through them.
        seed (int): Seed of the weights, the order of the images, the augmentation and the masks.

    Returns:
        DemoNet: The trained network, in evaluation mode.
    """
    torch.manual_seed(seed)
    images, labels, objects = _generated(count)
    # Convolutions on channels_last run nearly twice as fast on a CPU.
    model = _initialised(DemoNet()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        total, batches = 0.0, torch.split(torch.randperm(len(images)), BATCH)
        for batch in batches[: len(images) // BATCH]:
            shown, masks = _varied(images[batch].float() / 255, objects[batch])
            # Masking half of the images from the first epoch on would slow down learning.
            shown, target = _hidden(model, shown, labels[batch], masks, share=min(0.5, epoch / 4))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(shown)
            loss = F.cross_entropy(logits.float(), target)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total * BATCH / len(images):.3f}", flush=True)
    return model.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def accuracy(model: DemoNet, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the network classifies correctly."""
    logits = torch.cat([model(batch) for batch in torch.split(images, BATCH)])
    return (logits.argmax(dim=1) == labels).float().mean().item()


def _initialised(model: DemoNet) -> DemoNet:
    """Kaiming initialisation, since PyTorch's default lets the signal fade without batch norm."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def _generated(count: int) -> tuple[Tensor, Tensor, Tensor]:
    with ProcessPoolExecutor() as pool:
        chunks = list(pool.map(_chunk, range(-(-count // CHUNK))))
    images, labels, masks = (torch.cat(part) for part in zip(*chunks, strict=True))
    return images, labels, masks


def _chunk(number: int) -> tuple[Tensor, Tensor, Tensor]:
    images, labels, masks = generate(CHUNK, FIRST_TRAINING_SEED + number)
    return (images * 255).round().byte(), labels, masks  # a quarter of the memory


def _varied(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The batch flipped and transposed at random, and each image's contrast and brightness changed."""
    flipped = [dim for dim in (2, 3) if torch.rand(()) < 0.5]
    images, masks = images.flip(flipped), masks.flip(flipped)
    if torch.rand(()) < 0.5:
        images, masks = images.transpose(2, 3), masks.transpose(2, 3)
    contrast = torch.empty(len(images), 1, 1, 1).uniform_(0.6, 1.3)
    brightness = torch.empty(len(images), 1, 1, 1).uniform_(0.5, 1.2)
    images = (((images - 0.5) * contrast + 0.5) * brightness).clamp(0, 1)
    return images.contiguous(memory_format=torch.channels_last), masks


def _hidden(model: DemoNet, images: Tensor, labels: Tensor, masks: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Masks a share of the images in part, and makes soft targets.

    Args:
        model (DemoNet): The network, whose feature maps are some of the masks.
        images (Tensor): Images in [0, 1], (N, 3, H, W).
        labels (Tensor): int64 of shape (N,).
        masks (Tensor): bool of shape (N, 1, H, W), true on the objects.
        share (float): Share of the images to mask, in [0, 1].

    Returns:
        tuple of two tensors:
            - images: float32 of shape (N, 3, H, W), in [0, 1].
            - targets: float32 of shape (N, classes), rows summing to 1: the less of the object is visible, the closer
              to uniform.
    """
    kept = _noise_masks(len(images)) if torch.rand(()) < 0.5 else _feature_masks(model, images)
    kept[torch.rand(len(images)) >= share] = 1
    images = kept * images + (1 - kept) * _substrates(len(images))
    visible = ((kept > 0.1) & masks).sum((1, 2, 3)) / masks.sum((1, 2, 3))
    certainty = ((visible - 0.1) / 0.3).clamp(0, 1)[:, None]
    target = F.one_hot(labels, len(CLASS_NAMES)) * certainty + (1 - certainty) / len(CLASS_NAMES)
    return images.contiguous(memory_format=torch.channels_last), target


def _noise_masks(count: int) -> Tensor:
    """Soft blobs of any coarseness, (N, 1, H, W) in [0, 1]."""
    cells = int(torch.randint(2, 15, ()))
    noise = torch.rand(count, 1, cells, cells)
    threshold = torch.empty(count, 1, 1, 1).uniform_(-0.1, 0.6)
    sharpness = torch.empty(count, 1, 1, 1).uniform_(1, 8)
    return ((_upsampled(noise) - threshold) * sharpness).clamp(0, 1)


@torch.no_grad()
def _feature_masks(model: DemoNet, images: Tensor) -> Tensor:
    """Random mixtures of the explained layer's channels, (N, 1, H, W), scaled to [0, 1]."""
    features = model.features[: int(EXPLAINED_LAYER.split(".")[1]) + 1](images)
    weights = torch.rand(features.shape[:2]) ** torch.empty(len(images), 1).uniform_(0, 40)
    masks = _upsampled((features * weights[..., None, None]).sum(dim=1, keepdim=True))
    masks = masks - masks.amin((2, 3), keepdim=True)
    return masks / masks.amax((2, 3), keepdim=True).clamp_min(1e-6)


def _upsampled(masks: Tensor) -> Tensor:
    return F.interpolate(masks, (PICTURE_SIZE, PICTURE_SIZE), mode="bilinear")


def _substrates(count: int) -> Tensor:
    """Colours of the masked parts, (N, 3, 1, 1): black for two of three images."""
    return torch.rand(count, 3, 1, 1) * (torch.rand(count, 1, 1, 1) < 1 / 3)


if __name__ == "__main__":
    main()
