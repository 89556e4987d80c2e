"""Trains the demo network on generated pictures: ``python -m captum_unioncam.demo.train``.

Half of the training pictures are hidden in part, as explanation by masking will hide them. Where
that hides the object the network learns to be unsure, so that its confidence in a masked picture
means something.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_unioncam.demo.network import EXPLAINED_LAYER, DemoNet
from captum_unioncam.demo.pictures import CLASS_NAMES, PICTURE_SIZE, generate

CHUNK = 250
BATCH = 32
FIRST_TRAINING_SEED = 1_000_000
"""Smaller seeds give pictures that the network has not seen."""
TEST_SEED = 10_000

PICTURE_SEED, PICTURE_INDEX = 0, 5
"""Which generated picture is the embedded one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="train, and write the weights here")
    parser.add_argument("--picture", type=Path, help="write the embedded picture here, as PNG")
    parser.add_argument("--pictures", type=int, default=20_000, help="how many to train on")
    parser.add_argument("--epochs", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (options.output or options.picture):
        parser.error("nothing to do: give --output, --picture or both")

    if options.picture:
        write_picture(options.picture)
    if options.output:
        started = time.perf_counter()
        model = train(options.pictures, options.epochs, options.seed)
        write_weights(model, options.output)
        print(f"trained in {time.perf_counter() - started:.0f} s")
        images, labels, _ = generate(1000, TEST_SEED)
        print(f"accuracy on 1000 fresh pictures: {accuracy(model, images, labels):.1%}")


def train(count: int, epochs: int, seed: int) -> DemoNet:
    """Trains a network on ``count`` generated pictures, each seen once an epoch.

    Args:
        count (int): How many pictures to generate, rounded up to whole chunks.
        epochs (int): How often to go through them.
        seed (int): Seed of the weights, of the order of the pictures and of what is done to them.

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
            # Learning starts only slowly where half of the pictures are hidden from the beginning.
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
    """Share of the pictures that the network classifies right."""
    logits = torch.cat([model(batch) for batch in torch.split(images, BATCH)])
    return (logits.argmax(dim=1) == labels).float().mean().item()


def write_weights(model: DemoNet, path: Path) -> None:
    """Writes the weights with safetensors, and never leaves half a file at ``path``."""
    from safetensors.torch import save

    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(save(model.state_dict()))
    os.replace(unfinished, path)


def write_picture(path: Path) -> None:
    """Writes the embedded picture."""
    from PIL import Image

    picture = generate(PICTURE_INDEX + 1, PICTURE_SEED)[0][PICTURE_INDEX]
    pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    unfinished = path.with_name(path.name + ".unfinished")
    Image.fromarray(pixels).save(unfinished, format="PNG", optimize=True)
    os.replace(unfinished, path)


def _initialised(model: DemoNet) -> DemoNet:
    """He's initialisation: PyTorch's default lets the signal fade where there is no batch norm."""
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
    """The batch in one of the eight symmetries of the square, each picture in another light."""
    flipped = [dim for dim in (2, 3) if torch.rand(()) < 0.5]
    images, masks = images.flip(flipped), masks.flip(flipped)
    if torch.rand(()) < 0.5:
        images, masks = images.transpose(2, 3), masks.transpose(2, 3)
    contrast = torch.empty(len(images), 1, 1, 1).uniform_(0.6, 1.3)
    brightness = torch.empty(len(images), 1, 1, 1).uniform_(0.5, 1.2)
    images = (((images - 0.5) * contrast + 0.5) * brightness).clamp(0, 1)
    return images.contiguous(memory_format=torch.channels_last), masks


def _hidden(model: DemoNet, images: Tensor, labels: Tensor, masks: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Hides a share of the pictures in part, and says how sure to be of each.

    Args:
        model (DemoNet): The network, whose own feature maps do some of the hiding.
        images (Tensor): Pictures in [0, 1], (N, 3, H, W).
        labels (Tensor): int64 of shape (N,).
        masks (Tensor): bool of shape (N, 1, H, W), where the objects are.
        share (float): How many of the pictures to hide in part, in [0, 1].

    Returns:
        tuple of two tensors:
            - pictures: float32 of shape (N, 3, H, W), in [0, 1].
            - targets: float32 of shape (N, classes), rows summing to 1: the less of the object
              there is to see, the closer to uniform.
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
    """Mixtures of few or many of the explained layer's maps, (N, 1, H, W), scaled to [0, 1]."""
    features = model.features[: int(EXPLAINED_LAYER.split(".")[1]) + 1](images)
    weights = torch.rand(features.shape[:2]) ** torch.empty(len(images), 1).uniform_(0, 40)
    masks = _upsampled((features * weights[..., None, None]).sum(dim=1, keepdim=True))
    masks = masks - masks.amin((2, 3), keepdim=True)
    return masks / masks.amax((2, 3), keepdim=True).clamp_min(1e-6)


def _upsampled(masks: Tensor) -> Tensor:
    return F.interpolate(masks, (PICTURE_SIZE, PICTURE_SIZE), mode="bilinear")


def _substrates(count: int) -> Tensor:
    """What shows where a picture is hidden, (N, 3, 1, 1): black for two of three, else a colour."""
    return torch.rand(count, 3, 1, 1) * (torch.rand(count, 1, 1, 1) < 1 / 3)


if __name__ == "__main__":
    main()
