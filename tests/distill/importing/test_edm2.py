"""EDM2's teachers and SiD's generators on EDM2 are read whole, and nothing in them runs."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from distill.checkpoints import load_network, save_network
from distill.cli import app
from distill.errors import UserError
from distill.importing import read_snapshot
from distill.importing.machine import GETATTR, HOOK, MODULE_DICT, Name, Node
from distill.importing.released import read_released
from distill.networks import Denoiser
from distill.networks.autoencoder import EDM2_SCALE
from distill.networks.edm2 import Edm2Config
from tests.distill.hostile import outcome, parameter, put_together, state_of, storage, take_apart
from tests.reference_numbers import FIXTURES

NAMES = ["edm2", "sida_edm2"]


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """The source in the fixtures, and every attack here, would write a file EXECUTED."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "EXECUTED").exists()


def refused(content):
    message = outcome(Path("network.pkl"), put_together(content))
    assert isinstance(message, str), "it was read"
    return message


def unet_of(content):
    return state_of(content["ema"])["_modules"]["unet"].args[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_a_trap_and_is_read_without_springing_it(name):
    content = (FIXTURES / f"{name}.pkl").read_bytes()
    assert b"EXECUTED" in content, "the fixture is no trap any more"
    network = outcome(Path("network.pkl"), content)
    assert isinstance(network, Denoiser)
    assert isinstance(network.config, Edm2Config)
    again = outcome(Path("network.pkl"), put_together(take_apart(name)))
    for key, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


def test_what_the_files_say_of_themselves_is_kept(tmp_path):
    teacher = read_released(FIXTURES / "edm2.pkl")
    assert teacher.metadata["role"] == "teacher"
    assert teacher.metadata["licence"] == "CC-BY-NC-SA-4.0"
    assert teacher.metadata["latents"]["autoencoder"] == "stabilityai/sd-vae-ft-mse"
    assert teacher.metadata["latents"]["scale"] == pytest.approx(EDM2_SCALE.scale)
    assert teacher.metadata["latents"]["bias"] == pytest.approx(EDM2_SCALE.bias)
    assert teacher.network.config.logvar_channels == 128
    generator = tmp_path / "edm2_img512_xs_sida_alpha1-077824.pkl"
    generator.write_bytes((FIXTURES / "sida_edm2.pkl").read_bytes())
    read = read_released(generator)
    assert read.metadata["role"] == "generator", "its class says more than its name"
    assert read.metadata["sigma_init"] == 2.5
    assert read.metadata["licence"] == "CC-BY-NC-SA-4.0"
    assert read.metadata["latents"]["scale"] == EDM2_SCALE.scale
    told = read_released(FIXTURES / "edm2.pkl", role="generator")
    assert told.network.config.logvar_channels == 0


def test_weights_are_kept_as_they_are_and_not_normalised_twice():
    weight = read_snapshot(FIXTURES / "edm2.pkl").network.model.enc["16x16_conv"].weight
    lengths = weight.square().mean(dim=(1, 2, 3)).sqrt()
    assert weight.dtype is torch.float32
    assert (lengths - 1).abs().max() > 0.1


@pytest.mark.parametrize(
    "arguments",
    [
        (Node(MODULE_DICT, ()), "__class__"),
        (Node(MODULE_DICT, ()), "_apply"),
        (Node(MODULE_DICT, ()), HOOK, None),
        (Node(MODULE_DICT, ()),),
        (),
        ("text", HOOK),
        (Name("numpy.ndarray"), HOOK),
        (Name(GETATTR), HOOK),
        (HOOK, Node(MODULE_DICT, ())),
    ],
)
def test_getattr_is_answered_for_one_name_of_a_module_alone(arguments):
    content = take_apart()
    content["loss_fn"] = Node(GETATTR, arguments)
    said = refused(content)
    assert f"it calls 'builtins.getattr' for another attribute than '{HOOK}'" in said


def test_what_getattr_gives_is_nothing_that_could_be_called():
    hook = put_together(Node(GETATTR, (Node(MODULE_DICT, ()), HOOK)))[2:-1]
    called = b"\x80\x04" + hook + b"\x8c\x0etouch EXECUTED\x85R."
    message = outcome(Path("network.pkl"), called)
    assert "it calls something that is no name" in message
    built = b"\x80\x04" + hook + b"}b."
    assert "changes the state of an object that has none" in outcome(Path("network.pkl"), built)


def test_a_class_of_numpys_is_a_name_and_no_more():
    for path in ("numpy.ndarray", "numpy.core.multiarray._reconstruct"):
        content = take_apart()
        content["loss_fn"] = Node(path, (("touch EXECUTED",),))
        assert isinstance(outcome(Path("network.pkl"), put_together(content)), Denoiser)


def argument(name, value):
    def change(content):
        unet_of(content)["state"]["_init_kwargs"][name] = value

    return change


def outer(name, value):
    def change(content):
        state_of(content["ema"])[name] = value

    return change


def encoder(name, value):
    def change(content):
        content["encoder"].args[0]["state"][name] = value

    return change


def without(content):
    """Half of the weights."""
    del state_of(unet_of(content)["state"]["_modules"]["dec"])["_modules"]["8x8_block1"]


def with_three_channels(content):
    for state in (unet_of(content)["state"]["_init_kwargs"], state_of(content["ema"])):
        state["img_channels"] = 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without, "it lacks 'unet.dec.8x8_block1.attn_proj.weight' (7 are missing)"),
        (with_three_channels, "'unet.enc.16x16_conv.weight' is not of the shape [32, 4, 3, 3]"),
        (argument("model_channels", 48), "is not of the shape"),
        (argument("model_channels", 2**400), "model_channels is missing, or not within 0 to 4096"),
        (argument("num_blocks", 3), "it lacks 'unet.dec.16x16_block3."),
        (argument("channel_mult", [1, 2, 2]), "it lacks 'unet.dec.4x4_block0.conv_res0.weight'"),
        (argument("channel_mult", 2), "its channel_mult is no list"),
        (argument("channel_mult", None), "channel_mult is missing, or not within 0 to 64"),
        (argument("channel_mult", [1] * 65), "the channel_mult of its UNet is of a wrong type"),
        (argument("channel_mult", [0, 0]), "its network cannot be built: channel_mult"),
        (argument("channel_mult_emb", 2), "its channel_mult_emb is not None, as in all"),
        (argument("label_balance", 0.3), "its label_balance is not 0.5"),
        (argument("clip_act", 1e9), "its clip_act is not 256"),
        (argument("channels_per_head", 0), "its network cannot be built: channels_per_head"),
        (argument("channels_per_head", 64), "it holds an unknown 'unet."),
        (argument("attn_resolutions", ["16"]), "attn_resolutions of its UNet is of a wrong type"),
        (argument("dropout", float("nan")), "dropout"),
        (argument("img_resolution", 32), "its Precond and its UNet differ in img_resolution"),
        (argument("use_gan", "yes"), "the use_gan of its UNet is of a wrong type"),
        (argument("colour", 1), "its UNet has an unknown 'colour'"),
        (outer("sigma_data", 1.0), "its sigma_data is not 0.5, which all of EDM2's have"),
        (outer("label_dim", 3), "its Precond and its UNet differ in label_dim"),
        (outer("_init_kwargs", {"logvar_channels": 10**9}), "logvar_channels is not within"),
        (outer("_init_kwargs", None), "logvar_channels is not within"),
        (outer("_modules", {}), "its Precond holds more or less than a 'unet' and a head"),
        (outer("_parameters", {"x": 1}), "its Precond holds more or less than a 'unet'"),
        (encoder("vae_name", "a\nb"), "its encoder does not name its autoencoder"),
        (encoder("scale", [1.0] * 4), "the scale of its encoder is not float32 numbers"),
        (encoder("scale", None), "the scale of its encoder is not float32 numbers"),
        (encoder("bias", Name("numpy.ndarray")), "the bias of its encoder is not float32"),
    ],
)
def test_another_kind_of_network_is_one_clear_line(change, said):
    content = take_apart("edm2")
    change(content)
    assert said in refused(content)


def array_of(content, **changes):
    """Change the encoder's scale: its count, the type of its numbers, or its bytes."""
    node = content["encoder"].args[0]["state"]["scale"]
    version, shape, dtype, order, numbers = node.state
    dtype.args = (changes.get("kind", "f4"), *dtype.args[1:])
    shape, numbers = changes.get("shape", shape), changes.get("numbers", numbers)
    node.state = (version, shape, dtype, order, numbers)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": (3,), "numbers": bytes(12)}, "a scale of 3 channels, its network 4"),
        ({"shape": (2**60,)}, "is not float32 numbers"),
        ({"shape": (-4,)}, "is not float32 numbers"),
        ({"shape": (2, 2)}, "is not float32 numbers"),
        ({"kind": "O8"}, "is not float32 numbers"),
        ({"numbers": b"\0\0\x80\x7f" * 4}, "is not float32 numbers"),
        ({"numbers": bytes(16)}, "the scale of its encoder holds a 0"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(changes, said):
    content = take_apart("edm2")
    array_of(content, **changes)
    assert said in refused(content)


def test_an_encoder_of_pixels_makes_no_latents_and_another_is_refused():
    content = take_apart("edm2")
    content["encoder"].args[0]["class_name"] = "StandardRGBEncoder"
    Path("network.pkl").write_bytes(put_together(content))
    assert "latents" not in read_released(Path("network.pkl")).metadata
    content["encoder"].args[0]["class_name"] = "TextEncoder"
    assert "its encoder is a 'TextEncoder'" in refused(content)


def test_other_classes_are_refused_by_their_names():
    content = take_apart("edm2")
    content["ema"].args[0]["class_name"] = "Precond3"
    assert "its network is a 'Precond3': only EDMPrecond can be read" in refused(content)
    content = take_apart("edm2")
    unet_of(content)["class_name"] = "SongUNet"
    assert "its raw network is a 'SongUNet': UNet and UNet_EncoderDecoder" in refused(content)
    content = take_apart("edm2")
    unet_of(content)["state"]["_modules"]["emb_noise"].args[0]["class_name"] = "Linear"
    assert "its 'unet.emb_noise' is a 'Linear'" in refused(content)


def test_a_weight_that_lies_is_refused():
    for weight, size, said in (
        (torch.full((64, 32), float("nan")), (64, 32), "holds NaN or infinity"),
        (torch.ones(3), (64, 32), "does not lie in its storage as a whole"),
        (torch.ones(64, 32).double(), (64, 32), "names 'torch.DoubleStorage'"),
        (torch.ones(64, 31), (64, 31), "is not of the shape [64, 32]"),
    ):
        content = take_apart("edm2")
        state = state_of(unet_of(content)["state"]["_modules"]["emb_noise"])
        node = parameter(storage(weight), size, (size[1], 1))
        state["_parameters"]["weight"] = node
        message = refused(content)
        assert said in message
        assert "its 'unet.emb_noise.weight'" in message


def sid_import(*arguments):
    result = CliRunner().invoke(app, ["import", *map(str, arguments)])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.exception or result.output
    return result.output


def test_a_teacher_is_imported_to_be_distilled():
    said = sid_import(FIXTURES / "edm2.pkl", "--name", "edm2-tiny")
    assert "edm2, 16x16x4, 10 classes" in said
    assert "--teacher checkpoints/edm2-tiny.safetensors" in said
    network, metadata = load_network(Path("checkpoints/edm2-tiny.safetensors"))
    assert network.config.logvar_channels == 128
    assert metadata["licence"] == "CC-BY-NC-SA-4.0"
    assert metadata["latents"]["scale"] == pytest.approx(EDM2_SCALE.scale)


def test_a_generator_of_latents_is_imported_and_not_published_as_if_it_drew_images():
    said = sid_import(FIXTURES / "sida_edm2.pkl", "--name", "tiny")
    assert "it draws latents of stabilityai/sd-vae-ft-mse" in said
    assert not Path("models").exists()
    network, metadata = load_network(Path("checkpoints/tiny.safetensors"))
    assert metadata["role"] == "generator"
    for command in (("publish", "--name", "tiny"), ("export", "-o", "tiny.onnx")):
        arguments = [command[0], "checkpoints/tiny.safetensors", *command[1:]]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, UserError)
        assert "draws latents of stabilityai/sd-vae-ft-mse" in str(result.exception)
    save_network(Path("again.safetensors"), network, metadata)
    assert load_network(Path("again.safetensors"))[1] == metadata
