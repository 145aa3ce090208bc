"""Every error of the application has the same form."""

import pytest

from service.exceptions import refusals
from service.serving.catalogue import Catalogue
from service.serving.exceptions import (
    ClosedError,
    ComputeError,
    DeadlineError,
    EngineDownError,
    QueueFullError,
)

FIELDS = {"type", "title", "status", "detail"}


def assert_problem(answer, status: int) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) >= FIELDS
    assert problem["status"] == status
    assert problem["type"].startswith("urn:sid-serve:problem:")
    assert problem["title"]
    assert problem["detail"]
    assert "\n" not in problem["detail"]


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("POST", "/generate", {"content": b"{", "headers": {"content-type": "text/json"}}, 415),
        ("POST", "/generate", {"json": {"seed": -1}}, 422),
        ("POST", "/generate", {"json": {"extra": 1}}, 422),
        ("POST", "/generate", {"json": {"model": "nope"}}, 404),
        ("POST", "/generate", {"json": {}, "headers": {"accept": "image/gif"}}, 406),
        ("POST", "/generate/", {"json": {}}, 404),
        ("PUT", "/generate", {"json": {}}, 405),
        ("GET", "/nothing", {}, 404),
        ("GET", "/models/nope", {}, 404),
        ("DELETE", "/models", {}, 405),
    ],
)
def test_what_a_client_can_get_wrong(client, method, path, options, status):
    answer = client.request(method, path, **options)
    assert_problem(answer, status)
    if (method, path) == ("PUT", "/generate"):
        assert answer.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QueueFullError(0.2), 429),
        (ClosedError(), 503),
        (ComputeError("x"), 503),
        (EngineDownError("x"), 503),
        (DeadlineError("too late"), 504),
        (OSError("x"), 500),
    ],
)
def test_what_can_go_wrong_in_the_server(client, monkeypatch, error, status):
    def fail(*_):
        raise error

    monkeypatch.setattr(Catalogue, "resolve", fail)
    answer = client.generate({})
    assert_problem(answer, status)
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert "x" not in answer.json()["detail"].split(), "the inside stays inside"


def test_a_kind_of_problem_has_one_status(client):  # noqa: ARG001 the application loads them all
    statuses: dict[str, set[int]] = {}
    for refusal in refusals():
        statuses.setdefault(refusal.kind, set()).add(refusal.status)
    assert {"draining", "malformed", "rate-limited", "seed-out-of-range"} <= set(statuses)
    assert {kind: one for kind, one in statuses.items() if len(one) > 1} == {}


def test_draining_is_not_ready(client):
    client.app.state.catalogue.draining = True
    red = client.get("/readyz")
    assert_problem(red, 503)
    assert red.headers["retry-after"] == "1"
    assert client.get("/livez").status_code == 200
