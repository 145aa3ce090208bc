"""The model of a request that names none: by every way in, over reloads, stated wrongly."""

import asyncio
import shutil

import httpx
import pytest

from service.app import create_app
from service.client import AsyncClient
from service.serving.catalogue import load_contents
from service.serving.default_model import DEFAULT_NAME, DefaultModelError, choose_default
from service.settings import Settings
from tests.bundles import served_tag, write_bundle
from tests.service import test_cli
from tests.service.client import Client
from tests.service.serving.test_reload import hang_up, logged
from tests.service.test_process import serving

sid, assert_user_error = test_cli.sid, test_cli.assert_user_error

REFUSED = "reload refused, all is served as before"


@pytest.fixture
def several(models):
    """Models before and after `tiny` in the alphabet."""
    for name in ("another", "zebra"):
        write_bundle(models, name, channels=3)
    return models


def defaults(answer: httpx.Response) -> dict[str, bool]:
    return {card["name"]: card["default"] for card in answer.json()["models"]}


def test_every_request_that_names_no_model_gets_the_default(several):
    tag = served_tag(several / "tiny")
    with Client(create_app(Settings(models=several, default_model="tiny"))) as client:
        answers = [
            client.generate({"seed": 7}),
            client.get("/generate?seed=7"),
            client.generate({"seed": 7, "toward": 9, "mix": 0.25}),
            client.get("/generate?seed=7&toward=9&mix=0.25"),
        ]
        assert {answer.headers.get("x-model") for answer in answers} == {tag}
        body = {"prompt": "Dress", "seed": 7}
        openai = client.request("POST", "/v1/images/generations", json=body).json()
        assert (openai["model"], openai["size"]) == (tag, "8x8")
        cards = client.get("/models")
        assert defaults(cards) == {"another": False, "tiny": True, "zebra": False}
        assert client.get("/models/zebra").json()["default"] is False
        named = client.generate({"model": "zebra", "seed": 7})
        assert named.headers["x-model"] == served_tag(several / "zebra")


def test_the_file_beside_the_models_states_it_and_the_setting_comes_first(several):
    (several / DEFAULT_NAME).write_text("zebra\n")
    assert load_contents(Settings(models=several)).default == "zebra"
    assert load_contents(Settings(models=several, default_model="tiny")).default == "tiny"
    (several / DEFAULT_NAME).write_bytes("\ufeffzebra\r\n".encode("utf-16-le"))  # by PowerShell
    assert load_contents(Settings(models=several)).default == "zebra"


def test_what_is_stated_comes_first_then_what_was_then_what_is_alone():
    assert choose_default(["a", "b"], "b", "a") == "b"
    assert choose_default(["a", "b"], None, "b") == "b"
    assert choose_default(["a"], None, "b") == "a"
    assert choose_default(["a", "c"], None, "b") is None
    assert choose_default(["a", "b"], None) is None


def test_with_several_and_none_stated_the_answer_says_what_to_do(several):
    with Client(create_app(Settings(models=several))) as client:
        refused = client.generate({"seed": 1})
        assert refused.status_code == 422
        assert refused.json()["type"].endswith(":model-required")
        assert (
            "say which model: another, tiny, zebra (SID_DEFAULT_MODEL" in refused.json()["detail"]
        )
        assert not any(defaults(client.get("/models")).values())


@pytest.mark.parametrize("command", ["serve", "generate", "models"])
def test_a_default_that_is_not_there_ends_the_start_with_one_line(
    sid, models, monkeypatch, command
):
    (models / DEFAULT_NAME).write_text("old")
    arguments = ["--port", 0] if command == "serve" else []
    says = f"models/{DEFAULT_NAME} names 'old' as the default, and there is no such model, but tiny"
    assert_user_error(sid(command, *arguments), says)
    monkeypatch.setenv("SID_DEFAULT_MODEL", "gone")
    says = "SID_DEFAULT_MODEL names 'gone' as the default, and there is no such model, but tiny"
    assert_user_error(sid(command, *arguments), says)
    if command == "generate":  # what is named needs no default
        assert sid(command, "--model", "tiny").status == 0


def test_a_file_that_is_no_name_is_said(models):
    (models / DEFAULT_NAME).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(Exception, match=f"{DEFAULT_NAME}: not UTF-16 text"):
        load_contents(Settings(models=models))
    (models / DEFAULT_NAME).write_text("")
    with pytest.raises(DefaultModelError, match="names '' as the default"):
        load_contents(Settings(models=models))


@pytest.mark.usefixtures("several")
def test_the_command_draws_the_default_and_marks_it(sid, monkeypatch):
    assert_user_error(sid("generate"), "say which model: another, tiny, zebra")
    monkeypatch.setenv("SID_DEFAULT_MODEL", "zebra")
    assert ", model zebra:1:" in sid("generate", "--seed", 7).stdout
    listed = sid("models").stdout
    assert "zebra (default)" in listed
    assert listed.count("(default)") == 1


@pytest.mark.slow
def test_programs_and_bulk_runs_take_the_servers_default(sid, several, tmp_path):
    with serving(several, log=tmp_path / "log", SID_DEFAULT_MODEL="tiny") as (process, url):
        announced = process.stdout.readline()

        async def ask():
            async with AsyncClient(url) as client:
                return await client.models(), await client.generate(seed=7)

        cards, image = asyncio.run(ask())
        assert ", model tiny:1:" in sid("generate", "--url", url, "--seed", 7).stdout
        done = sid("generate", "--url", url, "--seeds", "0-3", "-o", "out")
    assert "model tiny:1:" in done.stdout
    assert [card.name for card in cards if card.default] == ["tiny"]
    assert image.model == served_tag(several / "tiny")
    assert '"model"' not in announced, "the example needs no model"


@pytest.mark.slow
def test_a_model_that_is_published_beside_the_only_one_changes_nothing(models, tmp_path):
    log = tmp_path / "log"
    with serving(models, log=log, SID_LOG_FORMAT="json") as (process, url):

        def default():
            answer = httpx.post(f"{url}/generate", json={"seed": 1})
            return answer.headers.get("x-model", "").partition(":")[0] or answer.status_code

        write_bundle(models, "another")
        hang_up(process, log, "reloaded")
        assert default() == "tiny"
        assert defaults(httpx.get(f"{url}/models")) == {"another": False, "tiny": True}
        (hint,) = logged(
            log, "the default is only remembered: SID_DEFAULT_MODEL keeps it over a restart"
        )
        assert hint["default"] == "tiny"

        (models / DEFAULT_NAME).write_text("another")
        hang_up(process, log, "reloaded")
        assert default() == "another"

        (models / DEFAULT_NAME).write_text("mistyped")
        write_bundle(models, "third")
        hang_up(process, log, REFUSED)
        assert "names 'mistyped' as the default" in logged(log, REFUSED)[-1]["reason"]
        assert default() == "another"
        assert set(defaults(httpx.get(f"{url}/models"))) == {"another", "tiny"}

        (models / DEFAULT_NAME).unlink()
        shutil.rmtree(models / "another")
        hang_up(process, log, "reloaded")
        assert default() == 422
    assert [one["default"] for one in logged(log, "reloaded")] == ["tiny", "another", "none"]


@pytest.mark.slow
def test_a_setting_whose_model_goes_refuses_the_reload(several, tmp_path):
    log = tmp_path / "log"
    served = {"SID_LOG_FORMAT": "json", "SID_DEFAULT_MODEL": "tiny"}
    with serving(several, log=log, **served) as (process, url):
        (several / "tiny").rename(tmp_path / "gone")
        hang_up(process, log, REFUSED)
        assert httpx.post(f"{url}/generate", json={"seed": 1}).status_code == 200
    (line,) = logged(log, REFUSED)
    assert "SID_DEFAULT_MODEL names 'tiny' as the default" in line["reason"]
