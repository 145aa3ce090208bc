"""A generator that a graph can be made of: its network, its header, and the decoder behind it."""

from pathlib import Path
from typing import Any, NamedTuple

from distill.autoencoders import latent_space_of, load_autoencoder, load_decoder
from distill.checkpoints import load_network
from distill.errors import UserError
from distill.export.one_step import PixelGenerator
from distill.licences import licence_of_both
from distill.networks import Denoiser
from distill.networks.latent_space import LatentDecoder
from distill.networks.light_decoder import LightDecoder


class Generator(NamedTuple):
    """A generator for a graph.

    Attributes:
        network: what draws.
        metadata: its header's; of one of latents with the decoder that stands behind it.
        decoder: of a generator of latents.
        decoder_metadata: its header's; empty without a decoder, or of a released one.
        imitated: where the autoencoder may lie that a light decoder imitates.
    """

    network: Denoiser
    metadata: dict[str, Any]
    decoder: LatentDecoder | None
    decoder_metadata: dict[str, Any]
    imitated: tuple[Path, ...] = ()

    @property
    def decoder_licence(self) -> str | None:
        """Under which the decoder may be passed on; None: not known, or there is no decoder."""
        return self.decoder_metadata.get("licence")

    @property
    def licence(self) -> str | None:
        """Under which all of it may be passed on; None: not known of one of the networks."""
        stated = self.metadata.get("licence")
        if self.decoder is None:
            return stated
        both = stated is not None and self.decoder_licence is not None
        return licence_of_both(stated, self.decoder_licence) if both else None

    def imitated_decoder(self) -> LatentDecoder | None:
        """The decoder that a light one imitates, if its file is at hand; None for another one."""
        if self.decoder is None:
            return None
        for path in self.imitated:
            try:
                autoencoder, about = load_autoencoder(path)
            except UserError:  # something else lies there now
                continue
            if latent_space_of(autoencoder, about) == self.decoder.space.sha256:
                return LatentDecoder(autoencoder.decoder, self.decoder.space).eval()
        return None

    def module(self) -> PixelGenerator:
        """The generator with its pixels."""
        steps = self.metadata.get("steps", 1)
        return PixelGenerator(self.network, self.metadata["sigma_init"], steps, self.decoder)


def load_generator(file: Path, autoencoder: Path | None = None) -> Generator:
    """Read a generator, with the decoder behind one of latents.

    Args:
        file: the generator's.
        autoencoder: the decoder's; None: the one that the generator's file names.

    Raises:
        UserError: it is no generator, or none for a graph; or see `load_decoder`.
    """
    network, metadata = load_network(file)
    if metadata.get("role") != "generator":
        raise UserError(
            f"{file} is a {metadata.get('role')}: a generator is needed (sid-distill run)"
        )
    if metadata.get("renoise", "same") != "same":
        raise UserError(
            f"{file} draws fresh noise between its steps, and a graph is given one noise: train it "
            "with --renoise same"
        )
    decoder, about = load_decoder(file, network.config, metadata, autoencoder)
    imitated: tuple[Path, ...] = ()
    if decoder is not None:
        if isinstance(decoder.decoder, LightDecoder):
            named = about.get("autoencoder_file"), metadata["latents"].get("file")
            imitated = tuple(Path(path) for path in named if isinstance(path, str))
            metadata["light_decoder"] = f"width {decoder.decoder.layout.width}"
        metadata["latents"] = decoder.space.model_dump(exclude={"file"}, exclude_none=True)
    return Generator(network, metadata, decoder, about, imitated)
