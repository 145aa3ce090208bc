"""A network of latents and its decoder as one graph: what it draws, in float32 and float16."""

import onnx
import pytest
import torch

from distill.errors import UserError
from distill.export.gate import draw_reference_images, validate
from distill.export.generator import load_generator
from distill.export.one_step import FoldedGenerator
from distill.export.onnx import example_inputs, export_onnx
from service.bundle import BASELINE, CUDA, FILENAMES
from tests.latents import write_autoencoder, write_latent_generator


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    autoencoder = write_autoencoder(folder / "autoencoder.safetensors", licence="MIT")
    return load_generator(write_latent_generator(folder / "g.safetensors", autoencoder))


@pytest.mark.parametrize(("dtype", "levels"), [(torch.float32, 1), (torch.float16, 4)])
def test_the_folded_networks_draw_the_same_images(generator, dtype, levels):
    module, inputs = generator.module(), example_inputs(generator.network, 4)
    with torch.no_grad():
        expected = module(*inputs).int()
        folded = FoldedGenerator(generator.network, 2.5, dtype, decoder=generator.decoder)
        drawn = folded(*inputs).int()
    assert expected.shape == (4, 64, 64, 3)
    assert expected.float().std() > 10  # it draws something
    assert (drawn - expected).abs().max() <= levels


def test_several_steps_are_decoded_once(generator):
    inputs = example_inputs(generator.network, 2)
    metadata = generator.metadata | {"steps": 2}
    with torch.no_grad():
        expected = generator._replace(metadata=metadata).module()(*inputs).int()
        folded = FoldedGenerator(generator.network, 2.5, steps=2, decoder=generator.decoder)
        assert (folded(*inputs).int() - expected).abs().max() <= 1
        assert (generator.module()(*inputs).int() - expected).abs().max() > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [BASELINE, pytest.param("model.float16.onnx", marks=pytest.mark.long), CUDA]
)
def test_its_graphs_pass_the_gate(generator, tmp_path, name):
    path, form = tmp_path / name, {"cuda": name == CUDA, "decoder": generator.decoder}
    export_onnx(generator.network, 2.5, path, FILENAMES[name], **form)
    graph, _ = validate(path, draw_reference_images(generator.module(), None))
    assert graph.measured.difference <= (1 if name == BASELINE else 4)
    (latents, _), (images,) = onnx.load(path).graph.input, onnx.load(path).graph.output
    shapes = [
        [size.dim_value for size in one.type.tensor_type.shape.dim][1:] for one in (latents, images)
    ]
    assert shapes == [[4, 8, 8], [64, 64, 3]]


@pytest.mark.slow
def test_a_decoder_beyond_float16_is_refused_by_the_name_of_its_layer(tmp_path):
    """In float32 it draws as before, for a normalisation follows the layer."""
    file = write_autoencoder(tmp_path / "autoencoder.safetensors", factor=2, licence="MIT")
    generator = load_generator(write_latent_generator(tmp_path / "g.safetensors", file))
    first = generator.decoder.decoder.decoder.conv_in
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(1e6)
    path, form = tmp_path / "model.float16.onnx", {"decoder": generator.decoder}
    export_onnx(generator.network, 2.5, path, "float16", **form)
    with pytest.raises(UserError, match=r"float16 ends at 65,504, and .*conv_in reaches \d"):
        validate(path, draw_reference_images(generator.module(), None))
