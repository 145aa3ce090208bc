"""A signed bundle is served as it was signed, or not at all."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle import BundleError, KeyFileError, describe_signature, load_bundle
from service.bundle.signature import fingerprint, load_private_key, load_trusted_keys, sign
from tests.bundles import write_bundle
from tests.service.signing import KEY, OTHER, private_pem, public_pem, sign_bundle

PUBLIC = KEY.public_key().public_bytes_raw()
TRUSTED = frozenset([PUBLIC])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sign_bundle(write_bundle(tmp_path_factory.mktemp("models"), graphs=["model.cpu.onnx"]))


def refused(folder, trusted=TRUSTED):
    with pytest.raises(BundleError) as error:
        load_bundle(folder, trusted)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_signed_bundle_is_loaded_and_says_by_whom(folder):
    both = TRUSTED | {OTHER.public_key().public_bytes_raw()}
    for trusted in (TRUSTED, both):
        assert load_bundle(folder, trusted).signed_by == fingerprint(PUBLIC)
    assert load_bundle(folder).signed_by is None
    assert load_bundle(folder).digest == load_bundle(folder, TRUSTED).digest


FILES = ["manifest.json", "manifest.sig", "1/model.onnx", "1/model.cpu.onnx", "config.pbtxt"]


@given(st.sampled_from(FILES), st.integers(0, 2**32))
def test_any_bit_that_is_flipped_is_refused(folder, name, bit):
    with (folder / name).open("r+b") as file:  # in place, since truncating waits for the disk

        def put(content):
            file.seek(0)
            file.write(content)
            file.flush()

        content = file.read()
        flipped = bytearray(content)
        flipped[bit // 8 % len(content)] ^= 1 << bit % 8
        put(flipped)
        try:
            refused(folder)
        finally:
            put(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [lambda x: x + b"\n", lambda x: x[1:], lambda x: x[:-1]])
def test_any_byte_more_or_less_is_refused(folder, name, change):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(change(content))
    try:
        refused(folder)
    finally:
        (folder / name).write_bytes(content)


def test_what_is_not_as_it_was_signed_is_one_line_each(tmp_path):
    folder = write_bundle(tmp_path)
    assert "not signed, and SID_TRUSTED_KEYS asks for it" in refused(folder)
    sign_bundle(folder, OTHER)
    says = refused(folder)
    assert f"signed by the key {fingerprint(OTHER.public_key().public_bytes_raw())}" in says
    assert f"none of SID_TRUSTED_KEYS ({fingerprint(PUBLIC)})" in says
    sign_bundle(folder)
    load_bundle(folder, TRUSTED)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("Random weights", "Other weights"))
    assert f"not the one that the key {fingerprint(PUBLIC)} signed" in refused(folder)
    sign_bundle(folder)
    (folder / "1" / "model.onnx").write_bytes(b"another graph")
    assert "not the file that was published" in refused(folder)


def test_a_signature_of_another_bundle_does_not_fit(tmp_path, folder):
    other = sign_bundle(write_bundle(tmp_path), description="another model")
    shutil.copy(folder / "manifest.sig", other)
    assert "it was changed" in refused(other)


def test_a_configuration_that_no_signature_covers_is_refused(tmp_path):
    """It says which graph Triton serves."""
    folder = sign_bundle(write_bundle(tmp_path))
    shutil.move(folder / "config.pbtxt", tmp_path)
    assert "config.pbtxt: No such file" in refused(folder)
    metadata = json.loads((folder / "manifest.json").read_text())
    del metadata["files"]["config.pbtxt"]
    text = json.dumps(metadata).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sig").write_bytes(sign(text, KEY))
    load_bundle(folder, TRUSTED)
    shutil.move(tmp_path / "config.pbtxt", folder)
    assert "its signature does not cover it" in refused(folder)


def test_keys_come_from_a_file_or_a_folder(tmp_path):
    both = {PUBLIC, OTHER.public_key().public_bytes_raw()}
    (tmp_path / "one.pem").write_bytes(b"of Alice\n" + public_pem(KEY))
    assert load_trusted_keys(tmp_path / "one.pem") == {PUBLIC}
    (tmp_path / "other.pub").write_bytes(public_pem(OTHER))
    (tmp_path / "..data").mkdir()  # as Kubernetes mounts them
    assert load_trusted_keys(tmp_path) == both
    joined = tmp_path / "one.pem"
    joined.write_bytes((public_pem(KEY) + public_pem(OTHER)).replace(b"\n", b"\r\n"))
    assert load_trusted_keys(joined) == both


RSA = """-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf
9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==
-----END PUBLIC KEY-----
"""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a public key in PEM form"),
        (b"hello", "not a public key in PEM form"),
        (b"\0\xff\xfe", "not UTF-8 text"),
        (public_pem(KEY)[:-10], "not a public key in PEM form, or one that is cut off"),
        (public_pem(KEY) + public_pem(OTHER)[:30], "cut off"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
        (private_pem(KEY), "a private key, which belongs to the publisher alone"),
        (RSA.encode(), "not an Ed25519 key, but RSA"),
    ],
)
def test_a_file_that_is_no_public_key_is_one_line(tmp_path, content, says):
    (tmp_path / "x.pem").write_bytes(content)
    for path in (tmp_path / "x.pem", tmp_path):
        with pytest.raises(KeyFileError, match=says) as error:
            load_trusted_keys(path)
        assert str(error.value).startswith(f"{tmp_path / 'x.pem'}: ")
        assert "\n" not in str(error.value)


def test_no_key_at_all_is_one_line(tmp_path):
    with pytest.raises(KeyFileError, match="holds no key"):
        load_trusted_keys(tmp_path)
    with pytest.raises(KeyFileError, match=r"no\.pem: No such file"):
        load_trusted_keys(tmp_path / "no.pem")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "not a private key in PEM form; openssl genpkey"),
        (public_pem(KEY), "not a private key in PEM form"),
        (private_pem(KEY, b"secret"), "the key is encrypted; openssl pkey"),
        (private_pem(KEY)[:60], "not a private key in PEM form"),
    ],
)
def test_a_file_that_is_no_private_key_is_one_line(tmp_path, content, says):
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(KeyFileError, match=says) as error:
        load_private_key(tmp_path / "key.pem")
    assert "\n" not in str(error.value)
    with pytest.raises(KeyFileError, match=r"no\.pem: No such file"):
        load_private_key(tmp_path / "no.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_keys_names_them_alike_and_signs_alike(tmp_path, folder):
    def openssl(*arguments):
        done = subprocess.run(["openssl", *map(str, arguments)], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "key.pub")
    (public,) = load_trusted_keys(tmp_path / "key.pub")
    der = openssl("pkey", "-pubin", "-in", "key.pub", "-outform", "DER")
    assert hashlib.sha256(der).hexdigest().startswith(fingerprint(public))
    manifest = folder / "manifest.json"
    signature = openssl("pkeyutl", "-sign", "-rawin", "-inkey", "key.pem", "-in", manifest)
    ours = sign(manifest.read_bytes(), load_private_key(tmp_path / "key.pem"))
    assert ours == f"ed25519 {public.hex()} {signature.hex()}\n".encode()


def test_a_table_says_who_signed(tmp_path):
    folder = write_bundle(tmp_path)
    assert describe_signature(folder, TRUSTED) == "-"
    sign_bundle(folder)
    assert describe_signature(folder, None) == fingerprint(PUBLIC)
    assert describe_signature(folder, {b"x" * 32}) == f"{fingerprint(PUBLIC)}, not trusted"
    (folder / "manifest.sig").write_bytes(b"x")
    assert describe_signature(folder, TRUSTED) == "broken"


def test_without_the_library_the_line_says_how_to_install_it(tmp_path, folder, monkeypatch):
    (tmp_path / "key.pub").write_bytes(public_pem(KEY))
    for name in [name for name in sys.modules if name.startswith("cryptography.hazmat.primitives")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    for fails in (load_trusted_keys, load_private_key):
        with pytest.raises(KeyFileError, match=r"need the package cryptography: .*\[signing\]"):
            fails(tmp_path / "key.pub")
    assert "need the package cryptography" in refused(folder)
    assert describe_signature(folder, None) == "not checked"
