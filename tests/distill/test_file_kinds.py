"""A file of another kind where a checkpoint is expected: the message says what it is."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner

from distill.checkpoints import load_network, save_network
from distill.cli import app
from distill.errors import UserError
from distill.evaluation.features import ASSETS, load_extractor
from distill.file_kinds import describe_file
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from tests.reference_numbers import FIXTURES

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def image(form):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, form)
    return file.getvalue()


def saved(**options):
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, file, **options)
    return file.getvalue()


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def arrays():
    file = io.BytesIO()
    np.savez(file, mu=np.zeros(3))
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("network.pkl"), io.BytesIO())
    return file.getvalue()


FOREIGN = {
    "empty": (b"", "an empty file"),
    "lfs": (LFS, "a pointer of Git LFS, not the file itself"),
    "page": (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "an HTML page, as a download"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML text"),
    "json": (json.dumps({"_class_name": "UNet2DModel"}).encode(), "a JSON text"),
    "text": ("Zeit für etwas anderes\n".encode() * 300, "a text file"),
    "png": (image("png"), "a PNG image"),
    "jpeg": (image("jpeg"), "a JPEG image"),
    "webp": (image("webp"), "a WebP image"),
    "gzip": (gzip.compress(b"weights"), "packed by gzip"),
    "bzip2": (bz2.compress(b"weights"), "packed by bzip2"),
    "xz": (lzma.compress(b"weights"), "packed by xz"),
    "tar": (tarred(), "a tar archive"),
    "zip": (zipped("edm.pkl", "readme.txt"), "a zip archive: unpack it first"),
    "torch": (saved(), "a checkpoint of torch.save's (.pt"),
    "torch, cut short": (saved()[:-40], "a damaged zip, or a checkpoint of torch.save's"),
    "old torch": (saved(_use_new_zipfile_serialization=False), "a checkpoint of torch.save's (.pt"),
    "script": (zipped("net/data.pkl", "net/code/__torch__.py"), "a TorchScript program"),
    "arrays": (arrays(), "NumPy's arrays (.npz)"),
    "safetensors": (
        safetensors.torch.save({"conv_in.weight": torch.zeros(3)}, {"format": "pt"}),
        "a safetensors file of another program's (tensors such as 'conv_in.weight')",
    ),
}


@pytest.fixture
def said(tmp_path, monkeypatch):
    """What a command line ends with, whose last words are a user's mistake."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert isinstance(result.exception, UserError), result.exception
        return str(result.exception)

    return run


@pytest.mark.parametrize("name", ["checkpoint", "network.safetensors", "network.pkl"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_network_is_told_by_its_content(said, tmp_path, kind, name):
    content, described = FOREIGN[kind]
    (tmp_path / name).write_bytes(content)
    for command in (
        ["import", name, "--name", "x"],
        ["run", "--teacher", name, "--out", "run"],
        ["regress", "--teacher", name, "--out", "run"],
        ["evaluate", name],
        ["publish", name, "--name", "x"],
        ["export", name, "-o", "m.onnx"],
    ):
        told = said(*command)
        assert f"it is {described}" in told, command
        assert "expected a" in told.partition(described)[2], command
        assert "released .pkl" in told, command


@pytest.mark.parametrize(
    ("files", "described"),
    [
        ([], "a folder"),
        (["model_index.json", "unet/config.json"], "the folder of a pipeline of diffusers"),
        (
            ["config.json", "diffusion_pytorch_model.bin"],
            "the folder of a model of diffusers or transformers",
        ),
        (["network.safetensors", "state.pt"], "the folder of a run: name its network.safetensors"),
    ],
)
def test_a_folder_is_called_one(said, tmp_path, files, described):
    for name in ["given/", *(f"given/{file}" for file in files)]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.mkdir(exist_ok=True) if name.endswith("/") else path.touch()
    for command in (["import", "given", "--name", "x"], ["publish", "given", "--name", "x"]):
        assert f"no network at given: it is {described}; expected a" in said(*command)


def test_a_network_of_ours_needs_no_import(said, tmp_path):
    network = Denoiser(EdmConfig(img_resolution=8, img_channels=1, model_channels=8,
                                 channel_mult=(1,), num_blocks=1, attn_resolutions=()))  # fmt: skip
    save_network(tmp_path / "n.safetensors", network, {"role": "teacher", "classes": []})
    assert "needs no import: name it as it is" in said("import", "n.safetensors", "--name", "x")
    with pytest.raises(UserError, match="it is a network that sid-distill wrote"):
        load_extractor("n.safetensors")
    assert describe_file(tmp_path / "n.safetensors") is None


def test_a_feature_extractor_is_told_from_a_network(said, tmp_path):
    shutil.copy(ASSETS / "fashion-cnn.safetensors", tmp_path)
    told = said("publish", "fashion-cnn.safetensors", "--name", "x")
    assert "it is a feature extractor of 'sid-distill features'; expected" in told
    assert load_extractor("fashion-cnn.safetensors").name == "fashion-cnn"


def test_a_released_pickle_is_read_whatever_its_name(tmp_path):
    path = shutil.copy(FIXTURES / "ncsnpp.pkl", tmp_path / "edm-download")
    _, metadata = load_network(path)
    assert metadata["role"] == "teacher"
    pickled = tmp_path / "other"
    pickled.write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(UserError, match=r"other is refused: it holds no 'ema'"):
        load_network(pickled)
