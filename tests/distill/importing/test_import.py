"""`sid-distill import`: from a released file to a teacher to distil, or a generator served."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from distill.checkpoints import load_network
from distill.cli import app
from distill.errors import UserError
from distill.importing import load_network as load_pickle
from service.bundle import latents, load_bundle, sha256_file
from service.engines.onnx import OnnxEngine
from tests.bundles import compute
from tests.distill.hostile import put_together, take_apart
from tests.reference_numbers import FIXTURES


def sid_import(*arguments):
    result = CliRunner().invoke(app, ["import", *map(str, arguments)])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.exception or result.output
    return result.output


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("EXECUTED").exists()


def draw(bundle, references):
    """Draw golden images with the gateway's own engine."""
    z = latents([reference.seed for reference in references], bundle.manifest.latent_shape)
    labels = None
    if bundle.manifest.classes:
        labels = np.array([reference.class_label for reference in references], np.int64)

    async def run():
        engine = OnnxEngine(bundle, threads=1, concurrency=1)
        await engine.open()
        try:
            return await compute(engine, z, labels)
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "shape"),
    [
        pytest.param("ddpmpp", list("01234"), (32, 32, 1), marks=pytest.mark.long),
        ("ncsnpp", [], (16, 16, 1)),
        pytest.param("adm", list("0123456789"), (32, 32, 3), marks=pytest.mark.long),
    ],
)
def test_a_generator_goes_straight_to_the_gateway(name, classes, shape):
    """Grey and in colour, with classes and without, of every architecture."""
    said = sid_import(FIXTURES / f"{name}.pkl", "--name", name, "--role", "generator")
    assert f"models/{name} is published: sid generate --models models --model {name}" in said
    bundle = load_bundle(Path("models", name))
    manifest = bundle.manifest
    assert manifest.classes == classes
    assert manifest.image_shape == shape
    assert manifest.sigma_init == 2.5
    assert manifest.licence == "CC-BY-NC-SA-4.0"
    assert manifest.training["source"] == f"{name}.pkl"
    assert manifest.golden is not None
    for reference, pixels in zip(
        manifest.golden.images, draw(bundle, manifest.golden.images), strict=True
    ):
        assert manifest.golden.mismatch(reference, pixels) is None
        assert pixels.std() > 10, "a flat image would prove nothing"


def test_a_teacher_is_kept_to_be_distilled():
    source = FIXTURES / "ddpmpp.pkl"
    said = sid_import(source, "--name", "grey", "--classes", "a, b,c,d,e")
    assert "taken for a teacher, as it holds the loss or the augmentation of its training" in said
    assert "if not: --role generator" in said
    assert "to distil it: sid-distill run --recipe" in said
    assert "--teacher checkpoints/grey.safetensors --out runs/grey" in said
    assert not Path("models").exists()

    network, metadata = load_network(Path("checkpoints/grey.safetensors"))
    expected = load_pickle(source)
    assert network.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
    assert metadata == {
        "role": "teacher",
        "classes": ["a", "b", "c", "d", "e"],
        "source": "ddpmpp.pkl",
        "source_sha256": sha256_file(source),
        "source_class": "SongUNet",
        "licence": "CC-BY-NC-SA-4.0",
    }
    written = Path("checkpoints/grey.json").read_bytes()
    record = json.loads(written)
    assert record["parameters"] == sum(p.numel() for p in network.parameters())
    assert record["arguments"]["dropout"] == 0.13
    assert record["network"]["architecture"] == "ddpmpp"
    sid_import(source, "--name", "grey", "--classes", "a,b,c,d,e")
    assert Path("checkpoints/grey.json").read_bytes() == written, "the record is reproducible"


def test_every_command_reads_a_released_file_as_it_is(tmp_path):
    """load_network stands behind run, evaluate, export and publish."""
    _, metadata = load_network(FIXTURES / "ncsnpp.pkl")
    assert metadata["role"] == "teacher"
    assert metadata["classes"] == []
    bare = put_together({"ema": take_apart()["ema"]})
    for name, role in (
        ("sid-cifar10.pkl", "generator"),
        ("edm-cifar10-32x32-uncond-vp.pkl", "teacher"),
    ):
        path = tmp_path / name
        path.write_bytes(bare)
        network, metadata = load_network(path)
        assert (metadata["role"], metadata.get("sigma_init")) == (
            role,
            {"generator": 2.5}.get(role),
        )
        assert not network.training


def test_the_role_can_be_told_and_is_explained(tmp_path):
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(put_together({"ema": take_apart()["ema"]}))
    said = sid_import(path, "--name", "told", "--role", "teacher")
    assert "taken for" not in said
    assert load_network(Path("checkpoints/told.safetensors"))[1]["role"] == "teacher"


def test_class_names_come_from_a_file_of_lines(tmp_path):
    (tmp_path / "names.txt").write_text("ä\nb\n\nc, d\ne\nf\n", encoding="utf-8")
    sid_import(FIXTURES / "ddpmpp.pkl", "--name", "named", "--classes", "names.txt")
    _, metadata = load_network(Path("checkpoints/named.safetensors"))
    assert metadata["classes"] == ["ä", "b", "c, d", "e", "f"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.pkl", "--name", "x"], "no network at missing.pkl"),
        (["hostile.pkl", "--name", "x"], "it names 'posix.system', which no network needs"),
        ([FIXTURES / "ddpmpp.pkl", "--name", "../x"], "cannot name a network"),
        ([FIXTURES / "ddpmpp.pkl", "--name", "x", "--role", "student"], "neither 'teacher' nor"),
        ([FIXTURES / "ddpmpp.pkl", "--name", "x", "--classes", "a,b"], "2 classes are named, the"),
        (
            [FIXTURES / "ddpmpp.pkl", "--name", "x", "--classes", "bytes.txt"],
            "bytes.txt: not UTF-8 text",
        ),
    ],
)
def test_what_cannot_be_imported_leaves_nothing_behind(arguments, said):
    Path("hostile.pkl").write_bytes(b"cposix\nsystem\n(\x8c\x0etouch EXECUTEDtR.")
    Path("bytes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=said):
        sid_import(*arguments)
    assert not Path("checkpoints").exists()
    assert not Path("models").exists()
