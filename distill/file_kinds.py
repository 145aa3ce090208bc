"""What a file is, by its first bytes: for people who gave another one than was expected.

A checkpoint comes from many places, and so do the wrong ones: other programs' checkpoints, a
pointer of Git LFS, the page of a download that asked for a login. Nothing here is trusted or run;
a file that is told by its name alone is not told.
"""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

FEATURE_EXTRACTOR = "a feature extractor of 'sid-distill features'"
AUTOENCODER = "an autoencoder"
LIGHT_DECODER = "a light decoder of 'sid-distill decoder', which has no encoder"

# Of a kind that says nothing more about itself; each with what its file begins with.
_SIGNATURES = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself ('git lfs pull')"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "packed by gzip: unpack it first"),
    (b"BZh", "packed by bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "packed by xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "an archive of 7-Zip: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it"),
    (b"\x93NUMPY", "an array of NumPy's (.npy)"),
    (b"GGUF", "a GGUF checkpoint"),
    (b"%PDF", "a PDF"),
)
# A pickle that begins with this number is of torch.save before version 1.6.
_OLD_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_HEAD = 4096
_MAX_HEADER = 100_000_000  # of safetensors, as its own library has it


def describe_file(path: Path) -> str | None:
    """Say what a file or folder is, with an article, as in "it is ...".

    Returns:
        None for a file of no kind that is known here; and for those that may be a network of
        sid-distill's or a released one: a safetensors file of ours, and a pickle.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        return _folder(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "an empty file"
    for begins, described in _SIGNATURES:
        if head.startswith(begins):
            return described
    if head.startswith(b"PK"):
        return _zip(path)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        is_torch = head[4:14] == _OLD_TORCH
        return "a checkpoint of torch.save's (.pt, .pth, .ckpt)" if is_torch else None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if head[8:9] == b"{":
        return _safetensors(path)
    if head[:1] == b"\x08" and head[2:3] == b"\x12":  # a version, then its producer's name
        return "an ONNX graph"
    return _text(head)


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle that is no checkpoint of torch.save's: a released network may be.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(2)
    return head[:1] == b"\x80" and head[1:] <= b"\x05" and describe_file(path) is None


def _folder(path: Path) -> str:
    """What a folder is, by the files that programs put there."""
    if (path / "network.safetensors").is_file():
        return "the folder of a run: name its network.safetensors"
    if (path / "model_index.json").is_file():
        return "the folder of a pipeline of diffusers"
    if any(path.glob("*.safetensors.index.json")) or any(path.glob("diffusion_pytorch_model.*")):
        return "the folder of a model of diffusers or transformers"
    return "a folder"


def _zip(path: Path) -> str:
    """What a zip is: torch's checkpoints and NumPy's arrays are zips too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        return "a damaged zip, or a checkpoint of torch.save's that was cut short"
    if any(name.endswith("/data.pkl") for name in names):
        script = any("/code/" in name for name in names)
        return "a TorchScript program" if script else "a checkpoint of torch.save's (.pt, .ckpt)"
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy's arrays (.npz)"
    return "a zip archive: unpack it first"


def is_network(path: Path) -> bool:
    """Whether a file is a network that sid-distill wrote, as far as its header says."""
    metadata = _header(path).get("__metadata__")
    return isinstance(metadata, dict) and {"facts", "config"} <= metadata.keys()


def is_autoencoder(path: Path) -> bool:
    """Whether a file is a safetensors file of an autoencoder, as far as its tensors' names say."""
    return path.is_file() and _names_of_autoencoder(_header(path))


def is_light_decoder(path: Path) -> bool:
    """Whether a file is a light decoder that sid-distill wrote, as far as its header says."""
    return path.is_file() and _is_light(_header(path))


def _is_light(header: dict[str, Any]) -> bool:
    metadata = header.get("__metadata__")
    return isinstance(metadata, dict) and "light_decoder" in metadata


def _names_of_autoencoder(header: dict[str, Any]) -> bool:
    # A text encoder's names begin otherwise, and a whole pipeline's have something before them.
    return any(name.startswith(("decoder.mid_block.", "decoder.up_blocks.")) for name in header)


def _safetensors(path: Path) -> str | None:
    """Whose safetensors file it is; None for a network of sid-distill's, or a damaged file."""
    header = _header(path)
    if not header or is_network(path):
        return None
    if "reference.mu" in header:
        return FEATURE_EXTRACTOR
    if _is_light(header):
        return LIGHT_DECODER
    if _names_of_autoencoder(header):
        return AUTOENCODER
    first = next((name for name in header if name != "__metadata__"), None)
    tensors = "no tensors" if first is None else f"tensors such as {first[:60]!r}"
    return f"a safetensors file of another program's ({tensors})"


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; empty where it has none that is whole."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= _MAX_HEADER else None
    except (ValueError, RecursionError, struct.error):
        return {}
    return header if isinstance(header, dict) else {}


def _text(head: bytes) -> str | None:
    """What a text is, if it is one; not for a pickle of protocol 0, which is text too."""
    if head[:1] in (b"c", b"(") and head.endswith(b"."):
        return None
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a letter that was cut in two
            return None
        text = head[: error.start].decode("utf-8")
    if not all(letter.isprintable() or letter in "\n\r\t\f\ufeff" for letter in text):
        return None
    start = text.lstrip("\ufeff \n\r\t").lower()
    if start.startswith(("<!doctype html", "<html", "<head")):
        return "an HTML page, as a download leaves it that fails or asks for a login"
    if start.startswith("<?xml"):
        return "an XML text, as a download leaves it that fails"
    return "a JSON text" if start.startswith(("{", "[")) else "a text file"
