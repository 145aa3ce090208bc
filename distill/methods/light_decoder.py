"""Training a light decoder: the images that another decoder makes, for a fraction of its work.

It needs no data: a generator draws the latents, with every class as often, and the other decoder
makes the images to learn. The loss is the mean absolute error of the pixels and of the differences
between neighbours: in trials of two seeds the two together came to 5.5 and 5.8 levels, the first
alone to 6.1 and 5.9; halved images beside it did not help. No network of others judges the images.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from distill.errors import UserError
from distill.methods.reconstruction import rate_share
from distill.networks.latent_space import AnyDecoder, LatentDecoder
from distill.networks.light_decoder import LightDecoder, LightDecoderLayout
from distill.training.precision import compute_dtype, full_float32
from distill.training.stop_signals import stop_requested
from service.bundle import FAR, latents

_EMA = 0.999  # of the weights, from step to step
# Seeds that are kept for the error: few of large images, each of which takes seconds on processors.
_MOST_UNSEEN, _FEWEST_UNSEEN, _UNSEEN_PIXELS = 256, 16, 2**20
_AT_A_TIME = 16  # of those

# Latents float32 [N, c, h, w], of noise [N, c, h, w] and class indices int64 [N] or None.
Draw = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class LightDecoderConfig:
    """How a light decoder is trained.

    Attributes:
        images: how many it sees.
        batch: images a step.
        lr: Adam's highest learning rate; it falls to 0 on half a cosine.
        seed: start of the random stream.
    """

    images: int
    batch: int = 16
    lr: float = 1e-3
    seed: int = 0


class PixelError(NamedTuple):
    """How far images are from those of the decoder that is imitated.

    Attributes:
        mean: absolute, in levels of 255.
        far: share of the values that are off by more than `service.bundle.FAR` levels.
    """

    mean: float
    far: float


class Trained(NamedTuple):
    """What came of a training.

    Attributes:
        decoder: the average of its weights, in eval mode on the CPU.
        error: of its images of seeds that it has not seen.
        images: how many it saw: fewer than it was to, if it was asked to stop.
    """

    decoder: LightDecoder
    error: PixelError
    images: int


def imitation_loss(drawn: Tensor, images: Tensor) -> Tensor:
    """The mean absolute error of the pixels and of their differences, added up: a scalar.

    Args:
        drawn: float32 [N, C, H, W], what the light decoder makes.
        images: float32, shaped like `drawn`, what the other one makes.
    """
    off = drawn - images
    across, down = off.diff(dim=3), off.diff(dim=2)
    return off.abs().mean() + across.abs().mean() + down.abs().mean()


def pixel_error(drawn: Tensor, images: Tensor) -> PixelError:
    """How far uint8 images are from others of the same shape."""
    off = (drawn.int() - images.int()).abs()
    return PixelError(float(off.float().mean()), float((off > FAR).float().mean()))


def multiplications(decoder: AnyDecoder, latent_shape: tuple[int, int, int]) -> int:
    """Of one image of a decoder; they are counted, not computed."""
    twin = copy.deepcopy(decoder).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.empty(1, *latent_shape, device="meta"))
    return int(counter.get_total_flops() // 2)


def train_light_decoder(
    draw: Draw,
    classes: int,
    latent_shape: tuple[int, int, int],
    full: LatentDecoder,
    layout: LightDecoderLayout,
    config: LightDecoderConfig,
    device: torch.device,
    progress: bool = True,
) -> Trained:
    """Train a light decoder on what a generator draws; SIGINT and SIGTERM end it early.

    Args:
        draw: the generator, on the device.
        classes: how many it has; 0 for one without.
        latent_shape: [c, h, w] of what it draws, and of the noise that it takes.
        full: the decoder to imitate, on the device; nothing in it is changed.
        layout: what to train.
        config: how.
        device: where.
        progress: show a progress bar.

    Raises:
        UserError: the training diverged, or the light decoder learned nothing.
    """
    if device.type == "cuda":
        compute_dtype("tf32", device)
    torch.manual_seed(config.seed)
    random = torch.Generator().manual_seed(config.seed)
    light = LightDecoder(layout, full.space.latent_scale).to(device)
    nn.init.constant_(light.conv_out.bias, 0.5)  # type: ignore[arg-type]
    kept, weights = copy.deepcopy(light), list(light.parameters())
    optimizer = torch.optim.Adam(weights, lr=config.lr, betas=(0.9, 0.99))
    steps, taken = -(-config.images // config.batch), 0
    with (
        tqdm(total=steps, unit="step", desc="light decoder", disable=not progress) as bar,
        stop_requested(insists=True) as stop,
    ):
        while taken < steps and not stop():
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate_share(taken, steps)
            noise = torch.randn(config.batch, *latent_shape, generator=random)
            labels = torch.randint(max(classes, 1), (config.batch,), generator=random)
            with torch.no_grad():
                drawn = draw(noise.to(device), labels.to(device) if classes else None)
                raw = full.space.latent_scale.to_raw(drawn)
                images = (full.levels_in_parts(drawn) / 255).clamp(0, 1)
            loss = imitation_loss(light(raw), images)
            if not loss.isfinite():
                raise UserError(f"the loss is not finite after {taken} steps: take a smaller --lr")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            share = min(_EMA, (1 + taken) / (10 + taken))
            with torch.no_grad():
                for average, weight in zip(kept.parameters(), weights, strict=True):
                    average.lerp_(weight, 1 - share)
            taken += 1
            bar.update()
            bar.set_postfix(loss=f"{float(loss.detach()):.4f}", refresh=False)
    error, flat = _error_of_unseen(kept, draw, classes, latent_shape, full, device)
    if not error.mean < flat:
        raise UserError(
            f"the light decoder learned nothing in {taken} steps: its images are "
            f"{error.mean:.1f} levels off on average, and one flat colour would be {flat:.1f} off; "
            "take more --images, or a smaller --lr"
        )
    return Trained(kept.cpu().eval(), error, min(taken * config.batch, config.images))


@torch.no_grad()
def _error_of_unseen(
    light: LightDecoder,
    draw: Draw,
    classes: int,
    latent_shape: tuple[int, int, int],
    full: LatentDecoder,
    device: torch.device,
) -> tuple[PixelError, float]:
    """The error of the seeds that servers draw first, and the mean one of a flat colour.

    Those come from another random stream than the training's.
    """
    imitating = LatentDecoder(light, full.space)
    pixels = latent_shape[1] * latent_shape[2] * full.decoder.layout.factor**2
    count = min(_MOST_UNSEEN, max(_FEWEST_UNSEEN, _UNSEEN_PIXELS // pixels))
    drawn, images = [], []
    with full_float32():
        for start in range(0, count, _AT_A_TIME):
            seeds = range(start, min(start + _AT_A_TIME, count))
            noise = torch.from_numpy(latents(seeds, latent_shape)).to(device)
            labels = torch.tensor([seed % max(classes, 1) for seed in seeds], device=device)
            drawn_latents = draw(noise, labels if classes else None)
            drawn.append(imitating(drawn_latents).cpu())
            images.append(full(drawn_latents).cpu())
    expected = torch.cat(images)
    colour = expected.float().mean(dim=(0, 1, 2))
    flat = float((expected.float() - colour).abs().mean())
    return pixel_error(torch.cat(drawn), expected), flat
