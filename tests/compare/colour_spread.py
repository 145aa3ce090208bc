"""How far the mean colours of a network's images lie apart within a class.

    python tests/compare/colour_spread.py runs/teacher/network.safetensors runs/sid/snapshots/*

The images are drawn from fixed noise: a teacher's by 12 of Heun's steps, a generator's in one.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from distill.checkpoints import load_network
from distill.data.datasets import one_hot
from distill.sampling import heun, one_step
from distill.training.start_level import mean_colour_spread

CELL, STEPS = 8, 12


@torch.no_grad()
def main() -> None:
    """Print the spread over whole images, and over cells of 8x8 pixels, a line a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", type=Path)
    parser.add_argument("--images-per-class", type=int, default=16)
    options = parser.parse_args()
    for path in options.networks:
        network, metadata = load_network(path)
        network.eval()
        config = network.config
        labels = torch.arange(config.label_dim).repeat_interleave(options.images_per_class)
        generator = torch.Generator().manual_seed(5)
        z = torch.randn(len(labels), *config.latent_shape, generator=generator)
        images = []
        for noise, some in zip(
            z.split(32), one_hot(labels, config.label_dim).split(32), strict=True
        ):
            if metadata["role"] == "teacher":
                images.append(heun(network, noise, some, STEPS))
            else:
                images.append(one_step(network, noise, some, metadata["sigma_init"]))
        drawn = torch.cat(images).clamp(-1, 1)
        # All cells of an image stand in one row, so that each is compared with the same place.
        cells = F.avg_pool2d(drawn, CELL).reshape(len(drawn), -1, 1, 1)
        whole, fine = mean_colour_spread(drawn, labels), mean_colour_spread(cells, labels)
        print(f"{path}  whole {whole:.4f}  cells {fine:.4f}")


if __name__ == "__main__":
    main()
