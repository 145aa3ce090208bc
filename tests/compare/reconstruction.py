"""How well images come back from an autoencoder: what no generator of its latents can better.

    python -m tests.compare.reconstruction --autoencoder runs/avatars-autoencoder.safetensors \
           --features avatars-cnn --data runs/avatars.zip --test runs/avatars-test.zip

Images that the autoencoder learned from are encoded (to the mean of their latents) and decoded.
They are then compared with what they were, pixel by pixel, and with the held-out images, as those
of a generator are. The same images untouched are the floor.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from distill.autoencoders import load_autoencoder
from distill.data.datasets import load_dataset
from distill.evaluation.features import load_extractor
from distill.importing.autoencoder import Autoencoder
from distill.networks.autoencoder import decoded_pixels
from tests.compare.halved_colours import print_row, some

BATCH = 32


@torch.no_grad()
def brought_back(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """What becomes of images uint8 [N, C, H, W]."""
    decoder, encoder = autoencoder
    parts = []
    for part in images.split(BATCH):
        mean, _ = encoder(part.float() / 255).chunk(2, dim=1)
        parts.append(decoded_pixels(decoder(mean)))
    return torch.cat(parts)


def main() -> None:
    """Print the error of a pixel, and distance, precision and recall against held-out images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--data", type=Path, required=True, help="images that it learned from")
    parser.add_argument("--test", type=Path, required=True, help="held-out images")
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    extractor = load_extractor(options.features)
    side = extractor.metadata.resolution if extractor.metadata else 64
    before = some(load_dataset(options.data, resolution=side), options.images).images
    after = brought_back(load_autoencoder(options.autoencoder)[0], before)
    error = (after.int() - before.int()).abs().float().mean()
    print(f"pixels come back {error:.2f} levels of 255 off on average")
    real = extractor.extract(load_dataset(options.test, resolution=side).images).features
    print_row("untouched", before, extractor, real)
    print_row("brought back", after, extractor, real)


if __name__ == "__main__":
    main()
