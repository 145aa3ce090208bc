"""The U-Net against the reference network's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from distill.networks import Denoiser, NetworkConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def ddpmpp():
    given = json.loads((FIXTURES / "ddpmpp.json").read_text())
    config = {name: given[name] for name in NetworkConfig.model_fields}
    network = Denoiser(NetworkConfig(**config)).eval()
    network.load_state_dict(safetensors.torch.load_file(FIXTURES / "ddpmpp.safetensors"))
    return network


@pytest.mark.parametrize("augmented", [False, True])
def test_ddpmpp_equals_the_reference(ddpmpp, augmented):
    with np.load(FIXTURES / "ddpmpp.npz") as file:
        case = {name: torch.from_numpy(file[name]) for name in file}
    augment_labels = case["augment_labels"] if augmented else None
    expected = case["denoised_augmented" if augmented else "denoised"]
    with torch.no_grad():
        denoised = ddpmpp(case["x"], case["sigma"], case["labels"], augment_labels)
    torch.testing.assert_close(denoised, expected, rtol=0, atol=1e-6)


def test_one_noise_level_serves_the_whole_batch(ddpmpp):
    torch.manual_seed(0)
    x, labels = torch.randn(3, 1, 32, 32), torch.eye(5)[:3]
    with torch.no_grad():
        broadcast = ddpmpp(x, torch.tensor([2.5]), labels)
        repeated = ddpmpp(x, torch.full((3,), 2.5), labels)
    torch.testing.assert_close(broadcast, repeated)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"img_resolution": 30}, "divisible by 4"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 0, 2)}, "cannot be normalised in groups"),
        ({"model_channels": 9}, "cannot be normalised in groups"),
        (
            {"attn_resolutions": (16, 7)},
            r"\[7\] are no level of this network: it has \[32, 16, 8\]",
        ),
        ({"dropout": 2}, "dropout"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"colours": 3}, "colours"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(changes, said):
    shape = {"img_resolution": 32, "img_channels": 1, "model_channels": 16} | changes
    with pytest.raises(ValidationError, match=said):
        NetworkConfig(**shape)
