"""GET /generate is a pure function of its parameters, and behaves like one on the wire."""

import asyncio

import pytest

from service.app import create_app
from service.engines.onnx import OnnxEngine
from service.http.security import new_key
from service.settings import Settings
from tests.bundles import write_bundle
from tests.service.client import Client

URL = "/generate?class_label=Dress&seed=7"


def sample(client: Client, name: str, **labels: str) -> float:
    return client.app.state.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def drawn(monkeypatch):
    """The number of images that reached the engine."""
    counted = []
    generate = OnnxEngine.generate

    async def counting(engine, prepare, finish, *deadline):
        counted.extend(prepare().inputs["latents"])
        await asyncio.sleep(0.1)  # on a busy machine too all come before it ends
        return await generate(engine, prepare, finish, *deadline)

    monkeypatch.setattr(OnnxEngine, "generate", counting)
    return counted


def test_it_draws_what_post_draws_and_may_be_kept_for_ever(client):
    answer = client.get(URL)
    assert answer.content == client.generate({"class_label": "Dress", "seed": 7}).content
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert answer.headers["etag"].startswith('"')
    assert answer.headers["vary"] == "Accept"
    assert "cache-control" not in client.generate({"seed": 7}).headers


def test_for_ever_if_the_url_names_the_weights(client):
    tag = client.get(URL).headers["x-model"]
    pinned = client.get(f"{URL}&model={tag}")
    assert pinned.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert pinned.headers["etag"] == client.get(URL).headers["etag"]
    for other in ("tiny:1:0123456789ab", "tiny:1:0123456789ab:float32", f"{tag}-cpu", f"{tag}:"):
        gone = client.get(f"{URL}&model={other}")
        assert gone.status_code == 404
        assert f"tiny is {tag} now" in gone.json()["detail"]


def test_the_weights_alone_do_not_fix_the_bytes(client):
    """An address of before, or of a server that draws the same weights by another graph."""
    tag = client.get(URL).headers["x-model"]
    weights = tag.rpartition(":")[0]
    assert weights.count(":") == 2
    answer = client.get(f"{URL}&model={weights}")
    assert answer.headers["x-model"] == tag
    assert answer.headers["cache-control"] == "public, max-age=3600"


def test_head_is_get_without_the_image(client):
    answer = client.request("HEAD", URL)
    assert answer.status_code == 200
    assert answer.headers["etag"] == client.get(URL).headers["etag"]


def test_the_tag_names_all_that_fixes_the_bytes(client, models):
    same = [URL, "/generate?class_label=2&seed=7", f"{URL}&n=1", f"{URL}&model=tiny"]
    assert len({client.get(url).headers["etag"] for url in same}) == 1
    other = ["?class_label=1&seed=7", "?class_label=2&seed=8", "?seed=9", "?seed=7&n=2"]
    tags = {client.get(f"/generate{query}").headers["etag"] for query in other}
    tags |= {client.get(URL, headers={"accept": a}).headers["etag"] for a in ("image/webp", "*/*")}
    assert len(tags) == len(other) + 2
    write_bundle(models.parent / "new", description="other weights, other digest")
    with Client(
        create_app(client.app.state.settings.model_copy(update={"models": models.parent / "new"}))
    ) as new:
        assert new.get(URL).headers["etag"] not in tags


@pytest.mark.usefixtures("bfloat16")
def test_the_tag_is_another_for_another_engine_or_precision(tmp_path):
    write_bundle(tmp_path, graphs=["model.cpu.onnx", "model.bfloat16.onnx"])
    served = [{}, {"engine": "openvino"}, {"engine": "openvino", "precision": "bfloat16"}]
    tags, models = set(), []
    for settings in served:
        with Client(create_app(Settings(models=tmp_path, **settings))) as client:
            answer = client.get(URL)
            tags.add(answer.headers["etag"])
            models.append(answer.headers["x-model"])
            assert client.get("/models/tiny").json()["tag"] == models[-1]
    assert len(tags) == len(served)
    assert [tag.rpartition(":")[2] for tag in models] == ["float32-cpu", "float32-cpu", "bfloat16"]


@pytest.mark.usefixtures("bfloat16")
def test_an_address_of_one_precision_is_refused_where_another_is_served(tmp_path):
    """Else a cache would keep, for a year, whichever of a mixed fleet answered first."""
    write_bundle(tmp_path, graphs=["model.cpu.onnx", "model.bfloat16.onnx"])
    with Client(create_app(Settings(models=tmp_path))) as exact:
        pinned = f"{URL}&model={exact.get(URL).headers['x-model']}"
        assert exact.get(pinned).headers["cache-control"].endswith(", immutable")
    settings = Settings(models=tmp_path, engine="openvino", precision="bfloat16")
    with Client(create_app(settings)) as other:
        refused = other.get(pinned)
        assert (refused.status_code, "immutable" in str(refused.headers)) == (404, False)


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_a_client_that_has_it_is_told_so_and_nothing_is_drawn(client, drawn, form):
    etag = client.get(URL).headers["etag"]
    before = len(drawn)
    answer = client.get(URL, headers={"if-none-match": form.format(etag)})
    assert answer.status_code == 304
    assert answer.content == b""
    assert answer.headers["etag"] == etag
    assert answer.headers["vary"] == "Accept"
    assert len(drawn) == before
    assert sample(client, "sid_cache_hits_total", model="tiny", kind="not_modified") == 1
    assert client.get(URL, headers={"if-none-match": '"other"'}).status_code == 200


def test_requests_for_the_same_image_at_the_same_time_draw_it_once(client, drawn):
    drawn.clear()

    async def together():
        other = client.http.get("/generate?class_label=1&seed=7")
        gets = [client.http.get(URL) for _ in range(10)]
        return [answer.content for answer in await asyncio.gather(other, *gets)]

    other, *images = client.run(together())
    assert len(set(images)) == 1
    assert other != images[0]
    assert len(drawn) == 2
    assert sample(client, "sid_cache_hits_total", model="tiny", kind="shared") == 9


@pytest.mark.usefixtures("drawn")  # slow enough to be late for one of them
def test_the_deadline_of_one_does_not_end_the_drawing_of_another(client):
    async def together():
        hurried = client.http.get(URL, headers={"x-deadline-ms": "5"})
        patient = client.http.get(URL)
        return await asyncio.gather(hurried, patient)

    hurried, patient = client.run(together())
    assert (hurried.status_code, patient.status_code) == (504, 200)


def test_with_api_keys_only_the_client_s_own_cache_may_keep_it(settings, tmp_path):
    made = new_key("alice")
    (tmp_path / "keys").write_text(made.line)
    with Client(create_app(settings.model_copy(update={"keys": tmp_path / "keys"}))) as client:
        answer = client.get(URL, headers={"x-api-key": made.secret})
    assert answer.headers["cache-control"].startswith("private, ")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "seed: Field required"),
        ("?seed=x", "seed: "),
        ("?seed=1_0", "seed: "),
        ("?seed=7.0", "seed: "),
        ("?seed=-1", "0 to 18446744073709551615"),
        ("?seed=18446744073709551616", "0 to 18446744073709551615"),
        ("?seed=1&class_label=3", "0 to 2 (T-shirt/top, Trouser, Dress)"),
        ("?seed=1&n=0", "n: "),
        ("?seed=7&seed=8", "seed: given 2 times: give it once"),
        (
            "?seed=1&sead=2",
            "sead: no such field, perhaps seed; the fields are model, class_label, seed, n, "
            "toward, mix, input.NAME",
        ),
    ],
)
def test_a_query_that_asks_for_what_there_is_not(client, query, says):
    answer = client.get(f"/generate{query}")
    assert answer.status_code == 422
    assert says in answer.json()["detail"]
    assert "etag" not in answer.headers
    assert "cache-control" not in answer.headers
