"""Small random networks of latents, and the bundles that the real exporter makes of them."""

from pathlib import Path
from typing import Any

import torch

from distill.autoencoders import latent_space_of, save_autoencoder
from distill.checkpoints import save_network
from distill.export.publish import publish
from distill.importing.autoencoder import Autoencoder
from distill.networks import Denoiser, read_config
from distill.networks.autoencoder import AutoencoderLayout, Decoder, Encoder
from distill.networks.latent_space import LatentSpace

CLASSES = ["dark", "light"]
NETWORK = {
    "architecture": "edm2", "img_resolution": 8, "img_channels": 4, "label_dim": 2,
    "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
    "channels_per_head": 8, "logvar_channels": 0,
}  # fmt: skip


def write_autoencoder(
    path: Path,
    *,
    latent_channels: int = 4,
    img_channels: int = 3,
    factor: int = 8,
    seed: int = 0,
    **metadata: Any,
) -> Path:
    """Write a random autoencoder, whose images differ with their latents; return its file."""
    widths = (8, *[16] * (factor.bit_length() - 1))
    layout = AutoencoderLayout(
        img_channels=img_channels, latent_channels=latent_channels, widths=widths, blocks=1,
        groups=4,
    )  # fmt: skip
    torch.manual_seed(seed)
    decoder, encoder = Decoder(layout).eval(), Encoder(layout).eval()
    torch.nn.init.constant_(decoder.decoder.conv_out.bias, 0.5)  # type: ignore[arg-type]
    save_autoencoder(path, Autoencoder(decoder, encoder), metadata)
    return path


def write_latent_generator(path: Path, autoencoder: Path, **network: Any) -> Path:
    """Write a random generator of an autoencoder's latents; return its file."""
    from distill.autoencoders import load_autoencoder

    loaded, about = load_autoencoder(autoencoder)
    torch.manual_seed(0)
    denoiser = Denoiser(read_config(NETWORK | network)).eval()
    for name, parameter in denoiser.named_parameters():
        if name.endswith("gain"):  # 0 in a fresh network, which would draw nothing
            torch.nn.init.constant_(parameter, 0.5)
    channels = loaded.decoder.layout.latent_channels
    space = LatentSpace(
        autoencoder=autoencoder.stem, scale=(0.5, 0.25, 0.5, 1.0)[:channels],
        bias=(0.1, -0.1, 0.0, 0.2)[:channels], sha256=latent_space_of(loaded, about),
        file=str(autoencoder),
    )  # fmt: skip
    classes = CLASSES if denoiser.config.label_dim else []
    metadata = {
        "role": "generator", "classes": classes, "sigma_init": 2.5, "licence": "MIT",
        "latents": space.model_dump(),
    }  # fmt: skip
    save_network(path, denoiser, metadata)
    return path


def write_latent_bundle(folder: Path, *, factor: int = 8, **network: Any) -> Path:
    """Publish a random network of latents with its decoder as folder/models/latent; return that.

    Its latents are 4x8x8, or as wide as the `img_resolution` in `network`; its images are in
    colour, and `factor` times as wide.
    """
    autoencoder = folder / "autoencoder.safetensors"
    write_autoencoder(autoencoder, factor=factor, licence="MIT")
    generator = write_latent_generator(folder / "generator.safetensors", autoencoder, **network)
    models = folder / "models"
    return publish(generator, None, "latent", "Random, for tests.", None, models)
