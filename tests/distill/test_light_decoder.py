"""`sid-distill decoder`: a light decoder goes wherever an autoencoder's decoder does."""

import json
import os
import signal

import pytest
import torch

from distill.autoencoders import (
    load_autoencoder,
    load_light_decoder,
    save_autoencoder,
    save_light_decoder,
    weights_sha256,
)
from distill.checkpoints import load_network, save_network
from distill.errors import UserError
from distill.evaluation.measurement import Measurement, save_measurement
from distill.export.gate import draw_reference_images, validate
from distill.export.generator import load_generator
from distill.export.one_step import FoldedGenerator
from distill.export.onnx import example_inputs, export_onnx
from distill.licences import licence_of_light_decoder
from distill.methods import light_decoder as training
from distill.networks.autoencoder import LatentScale
from distill.networks.light_decoder import LightDecoder, LightDecoderLayout
from service.bundle import BASELINE, CUDA, load_bundle, sha256_file
from tests.distill.command_line import sid_distill
from tests.latents import write_autoencoder, write_latent_generator

STEPS = ("--batch", 4, "--lr", 1e-2, "--width", 8, "--device", "cpu")
TINY = LightDecoderLayout(width=8, blocks=(1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An autoencoder, a generator of its latents, and a light decoder that learned of both."""
    folder = tmp_path_factory.mktemp("light")
    full = write_autoencoder(folder / "full.safetensors", factor=2, licence="MIT")
    make_learnable(full)
    small = {"img_resolution": 4, "attn_resolutions": []}
    write_latent_generator(folder / "generator.safetensors", full, **small)
    options = ("--images", 1600, *STEPS, "--out", folder / "light.safetensors")
    said = sid_distill(*decoder_of(folder), *options)
    (folder / "said.txt").write_text(said)
    return folder


def make_learnable(file):
    """Take a random decoder's depth and contrast: what is left can be learned in seconds."""
    autoencoder, metadata = load_autoencoder(file)
    with torch.no_grad():
        for name, weight in autoencoder.decoder.named_parameters():
            if "conv2" in name or "to_out" in name:
                weight.zero_()
            elif name == "decoder.conv_out.weight":
                weight *= 0.3
    save_autoencoder(file, autoencoder, metadata)


def decoder_of(folder):
    return "decoder", "--generator", folder / "generator.safetensors"


def with_decoder(folder, file):
    """The folder's generator with the decoder of that file."""
    return load_generator(folder / "generator.safetensors", file)


def test_it_learns_the_images_of_seeds_that_it_has_not_seen(folder):
    full = with_decoder(folder, folder / "full.safetensors")
    light = with_decoder(folder, folder / "light.safetensors")
    torch.manual_seed(99)
    inputs = torch.randn(64, *full.network.config.latent_shape), torch.arange(64) % 2
    with torch.no_grad():
        expected, drawn = full.module()(*inputs).float(), light.module()(*inputs).float()
    flat = float((expected - expected.mean(dim=(0, 1, 2))).abs().mean())
    error = float((drawn - expected).abs().mean())
    assert error < flat / 2
    _, metadata = load_light_decoder(folder / "light.safetensors")
    assert float(metadata["error"].removesuffix(" levels")) == pytest.approx(error, rel=0.2)
    assert f"its images are {metadata['error'][:2]}" in (folder / "said.txt").read_text()


def test_it_is_the_same_training_again(folder, tmp_path):
    weights = []
    for name in ("a.safetensors", "b.safetensors"):
        sid_distill(*decoder_of(folder), "--images", 240, *STEPS, "--out", tmp_path / name)
        weights.append(weights_sha256(load_light_decoder(tmp_path / name)[0]))
    assert weights[0] == weights[1]


def test_a_file_is_read_back_as_it_was(tmp_path):
    torch.manual_seed(0)
    decoder = LightDecoder(TINY, LatentScale((0.5, 1.0, 2.0, 4.0), (0.0, 0.1, 0.2, 0.3)))
    save_light_decoder(tmp_path / "x.safetensors", decoder, {"latent_space": "a", "error": "1"})
    read, metadata = load_light_decoder(tmp_path / "x.safetensors")
    raw = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        assert torch.equal(read(raw), decoder(raw))
    assert read(raw).shape == (2, 3, 10, 12)
    assert metadata == {"latent_space": "a", "error": "1"}
    assert not read.training


def test_scaled_latents_give_the_same_images():
    torch.manual_seed(0)
    decoder = LightDecoder(TINY, LatentScale((0.5, 1.0, 2.0, 4.0), (0.0, 0.1, 0.2, 0.3)))
    other = LatentScale((2.0, 0.25, 0.5, 1.0), (0.5, -0.5, 0.1, 0.0))
    latents = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        expected = decoder(other.to_raw(latents))
        decoder.take_scaled(other)
        torch.testing.assert_close(decoder(latents), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "levels"), [(torch.float32, 1), (torch.float16, 4)])
def test_folded_behind_the_network_it_draws_the_same(folder, dtype, levels):
    generator = with_decoder(folder, folder / "light.safetensors")
    inputs = example_inputs(generator.network, 4)
    with torch.no_grad():
        expected = generator.module()(*inputs).int()
        folded = FoldedGenerator(generator.network, 2.5, dtype, decoder=generator.decoder)
        assert (folded(*inputs).int() - expected).abs().max() <= levels


@pytest.mark.long
def test_both_decoders_are_versions_of_one_model(folder, tmp_path):
    models = tmp_path / "models"
    publish = ("publish", folder / "generator.safetensors", "--name", "m", "--models", models)
    said = sid_distill(*publish)
    assert load_bundle(models / "m").manifest.graphs["model.onnx"].measured.imitation is None
    assert "light decoder" not in said
    said = sid_distill(*publish, "--autoencoder", folder / "light.safetensors")
    assert "the light decoder differs from the one that it imitates by" in said
    manifest = load_bundle(models / "m").manifest
    assert manifest.version == 2
    first, second = models / "m" / "1" / "model.onnx", models / "m" / "2" / "model.onnx"
    assert first.read_bytes() != second.read_bytes()
    assert manifest.graphs.keys() == {"model.onnx", "model.cpu.onnx"}
    for graph in manifest.graphs.values():
        assert 0 < graph.measured.imitation.mean_difference < 12
        assert graph.measured.imitation.far_share < 0.1
        assert graph.measured.difference <= 1
    assert manifest.licence == "MIT"
    assert manifest.training["light_decoder"] == "width 8"
    assert str(folder) not in json.dumps(manifest.model_dump(mode="json"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["model.float16.onnx", CUDA])
def test_its_graphs_in_float16_pass_the_gate(folder, tmp_path, name):
    generator = with_decoder(folder, folder / "light.safetensors")
    path, form = tmp_path / name, {"cuda": name == CUDA, "decoder": generator.decoder}
    export_onnx(generator.network, 2.5, path, "float16", **form)
    expected = draw_reference_images(generator.module(), None, generator.imitated_decoder())
    measured = validate(path, expected)[0].measured
    assert measured.difference <= 4
    assert measured.imitation is not None


@pytest.mark.slow
def test_one_that_makes_other_images_is_not_published(folder, tmp_path):
    decoder, metadata = load_light_decoder(folder / "light.safetensors")
    with torch.no_grad():
        decoder.conv_out.bias += 0.1
    save_light_decoder(tmp_path / "shifted.safetensors", decoder, metadata)
    generator = with_decoder(folder, tmp_path / "shifted.safetensors")
    graph = tmp_path / BASELINE
    export_onnx(generator.network, 2.5, graph, decoder=generator.decoder)
    expected = draw_reference_images(generator.module(), None, generator.imitated_decoder())
    with pytest.raises(UserError, match="light decoder differs from the one that it imitates"):
        validate(graph, expected)


def test_the_decoder_that_it_imitates_is_found_where_it_lay(folder, tmp_path):
    full = with_decoder(folder, folder / "full.safetensors")
    decoder, metadata = load_light_decoder(folder / "light.safetensors")
    assert full.imitated_decoder() is None  # it imitates nobody
    other = write_autoencoder(tmp_path / "other.safetensors", factor=2, seed=1)
    for lay in (tmp_path / "gone.safetensors", other):  # then where the generator found it
        moved = tmp_path / "moved.safetensors"
        save_light_decoder(moved, decoder, metadata | {"autoencoder_file": str(lay)})
        found = with_decoder(folder, moved).imitated_decoder()
        latents = torch.randn(2, 4, 4, 4)
        assert torch.equal(found(latents), full.decoder(latents))
    assert with_decoder(folder, moved)._replace(imitated=(other,)).imitated_decoder() is None


def test_quality_of_another_decoder_is_not_published(folder, tmp_path):
    generator, teacher = folder / "generator.safetensors", tmp_path / "teacher.safetensors"
    network, facts = load_network(generator)
    save_network(teacher, network, facts | {"role": "teacher"})
    for file, role in ((generator, "generator"), (teacher, "teacher")):
        measured = Measurement(
            role=role, network_sha256=sha256_file(file), features="x", features_sha256="x",
            reference="x", images=256, first_seed=0, evaluations=1, distance=1.0,
        )  # fmt: skip
        save_measurement(file, measured)
    publish = ("publish", generator, "--name", "m", "--models", tmp_path, "--teacher", teacher)
    with pytest.raises(UserError, match=r"measured with another decoder.*--autoencoder .*light"):
        sid_distill(*publish, "--autoencoder", folder / "light.safetensors")


def test_a_signal_ends_it_with_what_it_has_learned(folder, tmp_path, monkeypatch):
    losses, loss_of = [], training.imitation_loss

    def then_interrupt(*images):
        losses.append(loss_of(*images))
        if len(losses) == 100:
            os.kill(os.getpid(), signal.SIGINT)
        return losses[-1]

    monkeypatch.setattr(training, "imitation_loss", then_interrupt)
    out = tmp_path / "light.safetensors"
    options = ("--images", 100_000, *STEPS, "--out", out)
    said = sid_distill(*decoder_of(folder), *options, exit_code=130)
    assert "stopped at 400 images" in said
    assert load_light_decoder(out)[1]["images_seen"] == 400
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_what_does_not_fit_is_refused_in_one_line(folder, tmp_path):
    full, light = folder / "full.safetensors", folder / "light.safetensors"
    out = ("--device", "cpu", "--out", tmp_path / "x.safetensors")
    for width in (0, 12, 2048):
        with pytest.raises(UserError, match=f"--width {width}: a multiple of 8 is expected"):
            sid_distill(*decoder_of(folder), *out, "--width", width)
    with pytest.raises(UserError, match=r"--width 64: .* costs [\d.]+ times what the autoencoder"):
        sid_distill(*decoder_of(folder), *out, "--width", 64)
    with pytest.raises(UserError, match=r"the loss is not finite|learned nothing"):
        sid_distill(*decoder_of(folder), *out, "--lr", 1e6, "--images", 400)
    with pytest.raises(UserError, match="is a light decoder already: name the autoencoder"):
        sid_distill(*decoder_of(folder), *out, "--autoencoder", light)
    with pytest.raises(UserError, match=r"is not at .*gone.safetensors: name the file"):
        sid_distill(*decoder_of(folder), *out, "--autoencoder", tmp_path / "gone.safetensors")

    network, facts = load_network(folder / "generator.safetensors")
    space = {**facts["latents"], "sha256": None}
    files = {
        "pixels": {name: value for name, value in facts.items() if name != "latents"},
        "homeless": facts | {"latents": {**facts["latents"], "file": None}},
        "released": facts | {"latents": space},
        "teacher": facts | {"role": "teacher"},
    }
    for name, metadata in files.items():
        save_network(tmp_path / f"{name}.safetensors", network, metadata)
    decoder = ("decoder", *out, "--generator")
    with pytest.raises(UserError, match=r"pixels.safetensors draws pixels: a light decoder is for"):
        sid_distill(*decoder, tmp_path / "pixels.safetensors")
    with pytest.raises(UserError, match="name the file of that autoencoder with --autoencoder"):
        sid_distill(*decoder, tmp_path / "homeless.safetensors")
    with pytest.raises(UserError, match="is a teacher: a generator is needed"):
        sid_distill(*decoder, tmp_path / "teacher.safetensors")
    wide = write_autoencoder(tmp_path / "wide.safetensors", latent_channels=3)
    with pytest.raises(UserError, match="has latents of 3 channels, the network has 4"):
        sid_distill(*decoder, tmp_path / "released.safetensors", "--autoencoder", wide)

    other = write_autoencoder(tmp_path / "other.safetensors", factor=2, seed=1)
    stranger = write_latent_generator(tmp_path / "stranger.safetensors", other)
    for command in (("evaluate",), ("publish", "--name", "m"), ("export", "--out", out[-1])):
        with pytest.raises(UserError, match=r"are of another autoencoder \(other\) than .*light"):
            sid_distill(*command, stranger, "--autoencoder", light)
    encode = ("latents", "--data", tmp_path, "--autoencoder", light, "--out", tmp_path / "l")
    with pytest.raises(UserError, match=r"is no autoencoder: it is a light decoder .* no encoder"):
        sid_distill(*encode)
    with pytest.raises(UserError, match="a light decoder of 'sid-distill decoder'"):
        sid_distill("import", light, "--name", "m")
    assert not out[-1].exists()
    assert full.exists()


def test_a_damaged_file_is_refused(folder, tmp_path):
    decoder, metadata = load_light_decoder(folder / "light.safetensors")
    damaged = tmp_path / "damaged.safetensors"

    def refused(match):
        with pytest.raises(UserError, match=match):
            with_decoder(folder, damaged)

    whole = (folder / "light.safetensors").read_bytes()
    damaged.write_bytes(whole[:-100])
    refused("damaged")
    save_light_decoder(damaged, decoder, {})
    refused("its header lacks 'latent_space'")
    decoder.layout = decoder.layout.model_copy(update={"width": 16})
    save_light_decoder(damaged, decoder, metadata)
    refused("its tensors are not those of its layout")
    decoder.layout = decoder.layout.model_copy(update={"width": 9})
    save_light_decoder(damaged, decoder, metadata)
    refused("a width of 9 is no multiple of 8")
    decoder.layout = decoder.layout.model_copy(update={"width": 8})
    torch.nn.init.constant_(decoder.conv_out.bias, float("nan"))
    save_light_decoder(damaged, decoder, metadata)
    refused("it holds NaN or infinity")


@pytest.mark.parametrize(
    ("autoencoder", "generator", "licence"),
    [
        ("MIT", "Apache-2.0", "MIT"),
        ("MIT", "CC-BY-NC-SA-4.0", "CC-BY-NC-SA-4.0"),
        ("CC-BY-NC-4.0", "Apache-2.0", "CC-BY-NC-4.0"),
        ("CC-BY-NC-4.0", None, "CC-BY-NC-4.0"),
        (None, "CC-BY-NC-4.0", "CC-BY-NC-4.0"),
        (None, "Apache-2.0", None),
        ("MIT", None, None),
    ],
)
def test_its_licence_is_the_stricter_one(autoencoder, generator, licence):
    assert licence_of_light_decoder(autoencoder, generator) == licence


def test_what_forbids_commercial_use_goes_on_forbidding_it(folder, tmp_path):
    network, facts = load_network(folder / "generator.safetensors")
    generator = tmp_path / "generator.safetensors"
    save_network(generator, network, facts | {"licence": "CC-BY-NC-4.0"})
    light = tmp_path / "light.safetensors"
    said = sid_distill("decoder", "--generator", generator, "--images", 240, *STEPS, "--out", light)
    assert "licence: CC-BY-NC-4.0" in said
    # Another generator of the same latents, which itself is free, does not make it so.
    assert with_decoder(folder, light).licence == "CC-BY-NC-4.0"
    publish = ("publish", folder / "generator.safetensors", "--name", "m", "--models", tmp_path)
    with pytest.raises(UserError, match=r"--licence Apache-2.0 does not fit"):
        sid_distill(*publish, "--autoencoder", light, "--licence", "Apache-2.0")
