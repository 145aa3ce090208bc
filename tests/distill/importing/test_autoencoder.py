"""An autoencoder of diffusers' is read by new and old names, and what is none is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from distill.autoencoders import load_autoencoder
from distill.cli import app
from distill.errors import UserError
from distill.importing.autoencoder import read_autoencoder
from distill.networks.autoencoder import AutoencoderLayout, Encoder
from tests.reference_numbers import FIXTURES

RECORDED = json.loads((FIXTURES / "vae_decoder.json").read_text())


@pytest.fixture
def weights():
    return load_file(FIXTURES / "vae_decoder.safetensors")


@pytest.fixture
def write(tmp_path):
    """A function that writes weights as diffusers does, with the config.json beside them."""

    def written(weights, config=RECORDED["config"]):
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        save_file(weights, path, {"format": "pt"})
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        return path

    return written


def old(weights, convolutions=False):
    """The same weights as older files have them, some of the encoder's among them."""
    today = {new: before for before, new in RECORDED["old_names"].items()}
    renamed = {today.get(name, name): tensor for name, tensor in weights.items()}
    if convolutions:
        for name in RECORDED["old_names"]:
            if name.endswith("weight"):
                renamed[name] = renamed[name][:, :, None, None].clone()
    return renamed | {"encoder.conv_in.bias": torch.zeros(16), "quant_conv.bias": torch.zeros(8)}


def decoded(path):
    decoder = read_autoencoder(path).decoder
    with np.load(FIXTURES / "vae_decoder.npz") as case, torch.no_grad():
        difference = decoder(torch.from_numpy(case["raw"])) - torch.from_numpy(case["pixels"])
    return difference.abs().max().item()


def test_both_spellings_are_the_same_decoder(weights, write):
    assert decoded(write(weights)) < 1e-5
    assert decoded(write(old(weights))) < 1e-5
    assert decoded(write(old(weights, convolutions=True))) < 1e-5
    half = {name: tensor.half() for name, tensor in weights.items()}
    assert decoded(write(half)) < 0.02


def test_an_encoder_is_read_where_a_file_holds_it_whole(weights, write):
    path = write(old(weights))
    autoencoder = read_autoencoder(path)
    assert autoencoder.encoder is None
    assert autoencoder.decoder.layout == AutoencoderLayout(widths=(16, 32, 48, 48), groups=8)
    torch.manual_seed(0)
    encoder = Encoder(autoencoder.decoder.layout)
    both = read_autoencoder(write(weights | encoder.state_dict())).encoder
    assert both is not None
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(both.state_dict()[name], tensor)


def changed(name, value):
    return lambda weights: weights | {name: value}


def halved(weights):
    """Half of the weights are missing."""
    return dict(sorted(weights.items())[::2])


def twice(weights):
    return weights | {"decoder.mid_block.attentions.0.query.bias": torch.zeros(48)}


CONV_IN = "decoder.conv_in.weight"
PRE = "post_quant_conv.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (halved, "it lacks '"),
        (changed(CONV_IN, torch.zeros(48, 8, 3, 3)), "is not of the shape [8"),
        (changed(CONV_IN, torch.zeros(48, 4, 3)), "'decoder.conv_in.weight' has the shape"),
        (changed(PRE, torch.full((4, 4, 1, 1), torch.nan)), "holds NaN or infinity"),
        (changed(PRE, torch.zeros(4, 4, 1, 1).long()), "'post_quant_conv.weight' is of the type I"),
        (changed("decoder.colour.weight", torch.zeros(1)), "an unknown 'decoder.colour.weight'"),
        (changed("loss." + "x" * 1000, torch.zeros(1)), "it holds an unknown 'loss.xxx"),
        (twice, "it holds 'decoder.mid_block.attentions.0.to_q.bias' under two names"),
        (
            lambda weights: (
                weights
                | {
                    f"decoder.up_blocks.{i}.resnets.0.conv1.weight": torch.zeros(1)
                    for i in range(20)
                }
            ),
            "it has 20 of decoder.up_blocks.*, and 1 to 8 can be read",
        ),
    ],
)
def test_what_is_no_whole_autoencoder_is_one_clear_line(weights, write, change, said):
    path = write({name: tensor.contiguous() for name, tensor in change(weights).items()})
    with pytest.raises(UserError) as refused:
        read_autoencoder(path)
    message = str(refused.value)
    assert message.startswith(f"{path} is refused: ")
    assert said in message
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "cannot be normalised in 32 groups: groups has to divide each of the widths"),
        ({"norm_num_groups": 5}, "16 channels cannot be normalised in 5 groups"),
        ({"norm_num_groups": "8"}, "config.json beside it states no norm_num_groups"),
        ([], "config.json beside it states no norm_num_groups"),
    ],
)
def test_the_groups_stand_beside_the_file(weights, write, config, said):
    with pytest.raises(UserError, match=said):
        read_autoencoder(write(weights, config))


def test_other_files_are_none(weights, tmp_path, write):
    path = write(weights)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"is damaged: .*"):
        read_autoencoder(path)
    other = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="is no autoencoder: it is a safetensors file of another"):
        read_autoencoder(other)
    with pytest.raises(UserError, match="is no autoencoder: it is none"):
        read_autoencoder(FIXTURES / "edm2.pkl")
    with pytest.raises(UserError, match="there is no such file"):
        read_autoencoder(tmp_path / "missing.safetensors")


def test_it_is_imported_with_the_licence_that_is_told_and_no_other(
    weights, write, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = write(old(weights))
    for options, licence in (((), None), (("--licence", "MIT"), "MIT")):
        result = CliRunner().invoke(app, ["import", str(path), "--name", "vae", *options])
        assert result.exit_code == 0, result.exception
        assert f"licence: {licence or 'not known'}" in result.output
        assert "4 channels, 1 to 8 pixels, 0.5 M weights" in result.output
        autoencoder, metadata = load_autoencoder(tmp_path / "checkpoints" / "vae.safetensors")
        assert metadata["source"] == path.name
        assert metadata.get("licence") == licence
        assert autoencoder.decoder.layout.groups == 8, "without a config.json beside it"
    refused = CliRunner().invoke(app, ["import", str(path), "--name", "x", "--role", "teacher"])
    assert "it has neither a --role nor --classes" in str(refused.exception)
    given = CliRunner().invoke(app, ["publish", str(path), "--name", "x"])
    assert "it is an autoencoder" in str(given.exception)
