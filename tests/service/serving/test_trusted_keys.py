"""SID_TRUSTED_KEYS: only signed bundles are served, at the start, at a reload and over Triton."""

import shutil
import sys

import httpx
import pytest

from service import cli
from service.app import create_app
from service.bundle import BundleError, KeyFileError
from service.bundle.signature import fingerprint
from service.settings import Settings
from service.tools import triton_server
from tests.bundles import write_bundle
from tests.service.client import Client
from tests.service.serving.test_reload import hang_up, logged
from tests.service.signing import KEY, OTHER, public_pem, sign_bundle
from tests.service.test_process import serving

NAMES = [fingerprint(key.public_key().public_bytes_raw()) for key in (KEY, OTHER)]


@pytest.fixture
def keys(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "publisher.pem").write_bytes(public_pem(KEY))
    return folder


def test_a_signed_model_is_served_and_its_card_says_by_whom(models, keys):
    sign_bundle(models / "tiny")
    with Client(create_app(Settings(models=models, trusted_keys=keys))) as client:
        assert client.get("/models/tiny").json()["signed_by"] == NAMES[0]
        assert client.generate({"seed": 7}).status_code == 200
    with Client(create_app(Settings(models=models))) as client:
        assert client.get("/models/tiny").json()["signed_by"] is None


@pytest.mark.parametrize("engine", [{}, {"triton": "127.0.0.1:1"}, {"engine": "auto"}])
def test_no_server_starts_over_what_is_not_signed(models, keys, engine):
    sign_bundle(models / "tiny")
    write_bundle(models, "another")
    app = create_app(Settings(models=models, trusted_keys=keys, **engine))
    with pytest.raises(BundleError, match="another: not signed"), Client(app):
        pass


@pytest.mark.parametrize("command", ["serve", "generate", "verify", "triton"])
def test_no_command_draws_with_what_is_not_signed(
    models, keys, tmp_path, monkeypatch, capsys, command
):
    with Client(create_app(Settings(models=models))) as client:
        (tmp_path / "x.png").write_bytes(client.generate({"seed": 7}).content)
    monkeypatch.setenv("SID_TRUSTED_KEYS", str(keys))
    monkeypatch.setattr(triton_server, "install", lambda: pytest.fail("Triton would have started"))
    arguments = {"verify": [str(tmp_path / "x.png")], "serve": ["--port", "0"]}.get(command, [])
    argv = ["sid", command, "--models", str(models), *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1), out + err
    assert err.startswith("error: ")
    assert "tiny: not signed, and SID_TRUSTED_KEYS asks for it" in err


def test_keys_that_are_none_end_the_start(models, tmp_path):
    (tmp_path / "x.pem").write_text("hello")
    app = create_app(Settings(models=models, trusted_keys=tmp_path / "x.pem"))
    with pytest.raises(KeyFileError, match=r"x\.pem: not a public key"), Client(app):
        pass


def test_the_table_of_models_says_who_signed(models, keys, monkeypatch, capsys):
    write_bundle(models, "another")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["sid", "models", "--models", str(models)])

    def table():
        with pytest.raises(SystemExit):
            cli.main()
        return capsys.readouterr().out

    assert "signed by" not in table()
    sign_bundle(models / "tiny", OTHER)
    assert NAMES[1] in table()
    monkeypatch.setenv("SID_TRUSTED_KEYS", str(keys))
    assert f"{NAMES[1]}, not trusted" in table()


@pytest.mark.slow
def test_a_reload_serves_signed_bundles_or_all_as_before(models, keys, tmp_path):
    log = tmp_path / "log"
    sign_bundle(models / "tiny")
    refused = "reload refused, all is served as before"
    with serving(models, log=log, SID_LOG_FORMAT="json", SID_TRUSTED_KEYS=str(keys)) as (
        process,
        url,
    ):

        def served():
            return {
                one["name"]: one["signed_by"] for one in httpx.get(f"{url}/models").json()["models"]
            }

        another = write_bundle(models, "another")
        for break_it, reason in (
            (lambda: None, "another: not signed"),
            (lambda: sign_bundle(another, OTHER), f"signed by the key {NAMES[1]}, which is none"),
            (
                lambda: shutil.copy(models / "tiny" / "manifest.sig", another),
                "it was changed",
            ),
            (lambda: (keys / "more.pem").write_text("x"), "more.pem: not a public key"),
        ):
            break_it()
            hang_up(process, log, refused)
            assert reason in logged(log, refused)[-1]["reason"]
            assert served() == {"tiny": NAMES[0]}
        (keys / "more.pem").write_bytes(public_pem(OTHER))
        sign_bundle(another, OTHER)
        hang_up(process, log, "reloaded")
        assert served() == {"another": NAMES[1], "tiny": NAMES[0]}
        sign_bundle(models / "tiny", OTHER)  # of the same bytes otherwise: it is served on
        hang_up(process, log, "reloaded")
        assert served() == {"another": NAMES[1], "tiny": NAMES[1]}
        (keys / "more.pem").unlink()  # a key that is taken back
        hang_up(process, log, refused)
        assert served() == {"another": NAMES[1], "tiny": NAMES[1]}
    assert "Traceback" not in log.read_text()
