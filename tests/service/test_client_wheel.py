"""The client by itself: as a server offers it, as pip builds it, and with httpx alone beside it."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.client import wheel_file
from service.http.security import new_key
from tests.bundles import write_bundle
from tests.fresh_venv import fresh_venv, run_in
from tests.service.test_process import serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KEY = new_key("alice")


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """A server that asks for keys."""
    folder = tmp_path_factory.mktemp("wheel")
    write_bundle(folder / "models")
    (folder / "keys").write_text(KEY.line)
    with serving(folder / "models", log=folder / "log", SID_KEYS=str(folder / "keys")) as (_, url):
        yield url


@pytest.fixture(scope="module")
def python(tmp_path_factory, url) -> Path:
    """The interpreter of a program that installed the client from the server."""
    folder = tmp_path_factory.mktemp("program")
    python = fresh_venv(folder / "app")
    address = str(httpx.get(f"{url}/client", follow_redirects=True).url)
    run_in(python, "-m", "pip", "install", address, cwd=folder)
    return python


def test_a_program_without_the_server_installs_it_and_draws(python, url, tmp_path):
    program = f"""
import importlib.util
from sid_client import Client
assert importlib.util.find_spec("service") is None
assert importlib.util.find_spec("numpy") is None
with Client({url!r}, key={KEY.secret!r}) as sid:
    sid.generate("Dress", seed=7).save("dress.png")
"""
    run_in(python, "-c", program, cwd=tmp_path)
    headers = {"x-api-key": KEY.secret}
    expected = httpx.get(f"{url}/generate?class_label=Dress&seed=7", headers=headers).content
    assert (tmp_path / "dress.png").read_bytes() == expected


def test_it_needs_httpx_and_nothing_else_and_pip_finds_all_of_it_well(python, tmp_path):
    said = run_in(python, "-m", "pip", "show", "--files", "sid-client", cwd=tmp_path)
    assert "\nRequires: httpx\n" in said
    assert f"\nVersion: {PROJECT['version']}\n" in said, "it is released with the server"
    assert "sid_client/py.typed" in said
    run_in(python, "-m", "pip", "check", cwd=tmp_path)
    (needed,) = (one for one in PROJECT["dependencies"] if one.startswith("httpx"))
    assert f"Requires-Dist: {needed}\n".encode() in wheel_file.content()
    assert f"Requires-Python: {PROJECT['requires-python']}\n".encode() in wheel_file.content()


def test_pip_builds_the_same_bytes_from_the_sources(python, url, tmp_path):
    sources = ROOT / "service" / "client"
    run_in(python, "-m", "pip", "wheel", "--no-deps", sources, cwd=tmp_path)
    (built,) = tmp_path.iterdir()
    assert built.name == wheel_file.NAME
    assert built.read_bytes() == httpx.get(f"{url}/client/{built.name}").content
    assert not (ROOT / "service" / "client" / "build").exists()


def test_it_is_found_without_its_version_and_another_is_told_which_there_is(url):
    found = httpx.get(f"{url}/client")
    assert (found.status_code, found.headers["location"]) == (307, f"client/{wheel_file.NAME}")
    wrong = httpx.get(f"{url}/client/sid_client-0.0.1-py3-none-any.whl")
    assert wrong.status_code == 404
    assert f"this server's client is {wheel_file.NAME}" in wrong.json()["detail"]


def test_the_reference_says_how_to_install_it(url):
    document = httpx.get(f"{url}/openapi.json", headers={"x-api-key": KEY.secret}).json()
    said = document["info"]["description"]
    assert said == f"The client for Python: `pip install {url}/client/{wheel_file.NAME}`"
    address = said.split("`pip install ")[1].rstrip("`")
    assert httpx.get(address).content == wheel_file.content()
