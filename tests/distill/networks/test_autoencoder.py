"""The autoencoder against the reference decoder's numbers, and its size."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from distill.data.datasets import Dataset
from distill.errors import UserError
from distill.methods.reconstruction import ReconstructionConfig, train_autoencoder
from distill.networks.autoencoder import (
    EDM2_SCALE,
    AutoencoderLayout,
    Decoder,
    Encoder,
    LatentScale,
    decoded_pixels,
    draw_latents,
)
from tests.reference_numbers import FIXTURES

SMALL = AutoencoderLayout(widths=(16, 32, 48, 48), groups=8)


@pytest.fixture(scope="module")
def case():
    with np.load(FIXTURES / "vae_decoder.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


def test_the_decoder_equals_the_reference(case):
    decoder = Decoder(SMALL)
    decoder.load_state_dict(load_file(FIXTURES / "vae_decoder.safetensors"))
    raw = EDM2_SCALE.to_raw(case["latents"])
    torch.testing.assert_close(raw, case["raw"], rtol=0, atol=1e-5)
    with torch.no_grad():
        middle = decoder.decoder.mid_block(decoder.decoder.conv_in(decoder.post_quant_conv(raw)))
        images = decoder(raw)
    torch.testing.assert_close(middle, case["mid_out"], rtol=0, atol=1e-5)
    torch.testing.assert_close(images, case["pixels"], rtol=0, atol=1e-5)
    pixels = decoded_pixels(images).int()
    assert (pixels != case["uint8"]).float().mean() < 1e-3
    assert (pixels - case["uint8"].int()).abs().max() <= 1


def test_the_scale_of_edm2_is_that_of_its_files_and_goes_back(case):
    recorded = json.loads((FIXTURES / "vae_decoder.json").read_text())
    stated = LatentScale(tuple(recorded["scale"]), tuple(recorded["bias"]))
    for ours, theirs in zip(EDM2_SCALE, stated, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    latents = draw_latents(case["moments"], case["noise"], EDM2_SCALE)
    torch.testing.assert_close(latents, case["latents_from_moments"], rtol=0, atol=1e-5)
    torch.testing.assert_close(EDM2_SCALE.to_latents(EDM2_SCALE.to_raw(latents)), latents)


@pytest.mark.slow
def test_a_small_one_learns_to_bring_images_back():
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (32, 3, 2, 2), dtype=torch.uint8, generator=generator)
    images = colours.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).contiguous()
    dataset = Dataset("colours", images, torch.zeros(32, dtype=torch.int64), ())
    layout = AutoencoderLayout(latent_channels=3, widths=(8, 16), blocks=1, groups=4)
    device = torch.device("cpu")

    def train(count):
        config = ReconstructionConfig(count, batch=16, lr=6e-3)
        return train_autoencoder(dataset, layout, config, device, progress=False)

    (decoder, encoder), error = train(2400)
    assert error < train(160)[1] / 2
    with torch.no_grad():
        mean, _ = encoder(images.float() / 255).chunk(2, dim=1)
        again = decoded_pixels(decoder(mean)).int()
    assert (again - images.int()).abs().float().mean() < error + 5
    layout = layout.model_copy(update={"widths": (8, 8, 8, 8, 8)})
    with pytest.raises(UserError, match="images of 8x8 pixels cannot become latents of one place"):
        train(16)


def test_stable_diffusions_size_and_cost():
    """Its decoder is published as 49,490,199 parameters, the whole of it as 83,653,863."""
    with torch.device("meta"), torch.no_grad():
        decoder, encoder = Decoder(AutoencoderLayout()), Encoder(AutoencoderLayout())
        with FlopCounterMode(display=False) as counter:
            assert decoder(torch.empty(1, 4, 64, 64)).shape == (1, 3, 512, 512)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (decoder, encoder)]
    assert sizes == [49_490_199, 83_653_863 - 49_490_199]
    assert counter.get_total_flops() / 2e9 == pytest.approx(1257, rel=0.01)
    assert decoder.layout.factor == 8


def test_an_encoder_gives_means_and_deviations_of_latents_that_the_decoder_takes():
    torch.manual_seed(0)
    moments = Encoder(SMALL)(torch.rand(2, 3, 64, 64))
    assert moments.shape == (2, 8, 8, 8)
    mean, deviation = moments.chunk(2, dim=1)
    assert (deviation > 0).all()
    assert Decoder(SMALL)(mean).shape == (2, 3, 64, 64)


def test_widths_that_cannot_be_normalised_are_refused():
    with pytest.raises(ValueError, match="48 channels cannot be normalised in 32 groups"):
        AutoencoderLayout(widths=(32, 48))
