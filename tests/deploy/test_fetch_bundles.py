"""The chart's init container: bundles are fetched whole and verified, or the pod does not start."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from service.bundle import load_bundle
from tests.bundles import write_bundle
from tests.deploy.chart import CHART

pytestmark = pytest.mark.slow
SCRIPT = CHART / "files" / "fetch_bundles.py"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def store(tmp_path):
    """A folder of archives, and the address at which it is served."""
    folder = tmp_path / "store"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield folder, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def pack(file, source, at):
    with tarfile.open(file, "w:gz") as archive:
        archive.add(source, at)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def fetch(tmp_path, *bundles):
    """Run it as the container does."""
    listed, filled = tmp_path / "bundles.json", tmp_path / "filled"
    listed.write_text(json.dumps(bundles))
    filled.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, SCRIPT, listed, filled],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done, filled


@pytest.mark.parametrize("at", ["tiny", "."])
def test_bundles_are_fetched_and_said(tmp_path, store, at):
    """Packed with their folder or without, and again over what an earlier try has left."""
    folder, address = store
    bundle = write_bundle(tmp_path / "models")
    sha256 = pack(folder / "tiny.tar.gz", bundle, at)
    wanted = {"name": "tiny", "url": f"{address}/tiny.tar.gz", "sha256": sha256}
    for _ in range(2):
        done, filled = fetch(tmp_path, wanted)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{load_bundle(bundle).tag}\n"
        assert load_bundle(filled / "tiny").digest == load_bundle(bundle).digest
        assert [one.name for one in filled.iterdir()] == ["tiny"]


def test_other_bytes_than_those_asked_for_are_never_unpacked(tmp_path, store):
    folder, address = store
    found = pack(folder / "tiny.tar.gz", write_bundle(tmp_path / "models"), "tiny")
    url = f"{address}/tiny.tar.gz"
    done, filled = fetch(tmp_path, {"name": "tiny", "url": url, "sha256": "0" * 64})
    assert done.returncode == 1
    assert done.stderr == (
        f"error: tiny: {url} has the SHA-256 {found}, and {'0' * 64} is asked for\n"
    )
    assert list(filled.iterdir()) == []


def test_an_archive_that_reaches_outside_is_refused(tmp_path, store):
    folder, address = store
    file = folder / "evil.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo("../outside")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    wanted = {"name": "tiny", "url": f"{address}/evil.tar.gz", "sha256": sha256}
    done, filled = fetch(tmp_path, wanted)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: tiny: {address}/evil.tar.gz cannot be unpacked: ")
    assert list(filled.iterdir()) == []


def test_an_archive_that_is_no_bundle_or_a_damaged_one_is_refused(tmp_path, store):
    folder, address = store
    bundle = write_bundle(tmp_path / "models")
    (bundle / "1" / "model.onnx").write_bytes(b"other weights")
    for name, at in (("damaged", "tiny"), ("other", "elsewhere")):
        sha256 = pack(folder / f"{name}.tar.gz", bundle, at)
        wanted = {"name": "tiny", "url": f"{address}/{name}.tar.gz", "sha256": sha256}
        done, filled = fetch(tmp_path, wanted)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert list(filled.iterdir()) == []


def test_an_address_that_does_not_answer_is_named(tmp_path, store):
    url = f"{store[1]}/nothing.tar.gz"
    done, _ = fetch(tmp_path, {"name": "tiny", "url": url, "sha256": "0" * 64})
    assert (done.returncode, done.stderr) == (1, f"error: {url}: HTTP Error 404: File not found\n")
