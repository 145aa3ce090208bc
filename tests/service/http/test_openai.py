"""/v1, as OpenAI's own client library uses it."""

import base64

import httpx2
import openai
import pytest

from service.app import create_app
from service.bundle import load_bundle
from service.http.security import new_key
from service.settings import Settings
from tests.bundles import write_bundle
from tests.service.client import Client


@pytest.fixture
def library(client):
    """OpenAI's library, its requests answered by the application in this process."""
    yield (made := openai_over(client))
    client.run(made.close())


def openai_over(client: Client, key: str = "none") -> openai.AsyncOpenAI:
    transport = httpx2.ASGITransport(client.app, raise_app_exceptions=False)
    return openai.AsyncOpenAI(
        base_url="http://test/v1",
        api_key=key,
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(transport=transport),
    )


def test_the_prompt_is_a_class_and_the_image_is_that_of_generate(client, library):
    said = client.run(
        library.images.generate(model="tiny", prompt="dress", n=2, extra_body={"seed": 7})
    )
    files = [base64.b64decode(one.b64_json) for one in said.data]
    assert files == [client.generate({"class_label": 2, "seed": seed}).content for seed in (7, 8)]
    assert [one.seed for one in said.data] == [7, 8]
    assert said.size == "8x8"


def test_a_url_leads_to_the_same_image_and_may_be_kept_for_ever(client, library, models):
    said = client.run(
        library.images.generate(
            prompt="Dress", response_format="url", size="8x8", extra_body={"seed": 7}
        )
    )
    url = said.data[0].url
    assert load_bundle(models / "tiny").digest in url
    answer = client.get(url)
    assert answer.content == client.generate({"class_label": 2, "seed": 7}).content
    assert "max-age=31536000" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    "classes",
    [
        ["1", "2", "3", "4", "5"],
        [str(i) for i in range(12)],
        sorted(str(i) for i in range(12)),  # of a bundle from before natural order
        ["-1", "0", "1", "2", "3"],
        ["01", "02", "03"],
        ["2", "1", "0"],
    ],
)
def test_classes_named_by_digits_mean_the_same_wherever_they_are_named(tmp_path, classes):
    write_bundle(tmp_path, "digits", classes=classes)
    with Client(create_app(Settings(models=tmp_path))) as client:
        for label in {*classes, *map(str, range(len(classes)))}:
            first = client.get("/generate", params={"class_label": label, "seed": 7})
            again = client.get(f"/generate?class_label={first.headers['x-class-label']}&seed=7")
            drawn = [first.content, again.content]
            drawn.append(client.generate({"class_label": label, "seed": 7}).content)
            if label == str(int(label)):
                drawn.append(client.generate({"class_label": int(label), "seed": 7}).content)
            body = {"prompt": label, "seed": 7}
            for form in ("b64_json", "url"):
                said = client.request(
                    "POST", "/v1/images/generations", json=body | {"response_format": form}
                )
                (one,) = said.json()["data"]
                drawn.append(
                    base64.b64decode(one["b64_json"])
                    if form == "b64_json"
                    else client.get(one["url"]).content
                )
            assert len(set(drawn)) == 1, label


def test_behind_a_proxy_with_tls_the_url_is_the_proxy_s(client):
    body = {"prompt": "2", "response_format": "url"}
    headers = {"host": "pictures.example", "x-forwarded-proto": "https"}
    said = client.request("POST", "/v1/images/generations", json=body, headers=headers)
    assert said.json()["data"][0]["url"].startswith("https://pictures.example/generate?")


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_the_file_is_of_the_form_that_is_asked_for(client, library, form):
    said = client.run(
        library.images.generate(prompt="2", output_format=form, extra_body={"seed": 7})
    )
    drawn = client.generate({"class_label": 2, "seed": 7}, accept=f"image/{form}")
    assert base64.b64decode(said.data[0].b64_json) == drawn.content
    assert said.output_format == form


def test_a_blank_prompt_is_any_class_and_no_seed_a_random_one(client, library):
    said = client.run(library.images.generate(prompt=" ", quality="high", user="me"))
    (one,) = said.data
    drawn = client.generate({"seed": one.seed})
    assert base64.b64decode(one.b64_json) == drawn.content


def test_without_classes_the_prompt_means_nothing(models, settings):
    write_bundle(models, "plain", classes=[])
    with Client(create_app(settings)) as client:
        body = {"model": "plain", "prompt": "a dress", "seed": 7}
        said = client.request("POST", "/v1/images/generations", json=body)
        drawn = client.generate({"model": "plain", "seed": 7})
        assert base64.b64decode(said.json()["data"][0]["b64_json"]) == drawn.content


def test_the_models_are_listed(client, library):
    assert [one.id for one in client.run(library.models.list()).data] == ["tiny"]


def test_a_model_is_described_as_the_library_asks(client, library):
    (listed,) = client.run(library.models.list()).data
    found = client.run(library.models.retrieve("tiny"))
    assert found == listed
    assert (found.id, found.object) == ("tiny", "model")
    tag = client.generate({}).headers["x-model"]
    assert client.run(library.models.retrieve(tag)).id == tag
    for name in ("dall-e-3", "tiny:9", tag + "x", "a/b", "tiny/x"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.run(library.models.retrieve(name))
        assert caught.value.body["message"]
        assert caught.value.code in ("model-not-found", "not-found")
    assert 'route="/v1/models/{model}",status="200"} 2.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"prompt": "unicorn"}, openai.UnprocessableEntityError, "no class is named 'unicorn'"),
        ({"prompt": "2", "model": "dall-e-3"}, openai.NotFoundError, "tiny"),
        ({"prompt": "2", "size": "1024x1024"}, openai.UnprocessableEntityError, "size 8x8"),
        ({"prompt": "2", "n": 1000}, openai.BadRequestError, "n is at most 64"),
        ({"prompt": "2", "n": 0}, openai.UnprocessableEntityError, "n:"),
    ],
)
def test_errors_are_shown_in_our_words(client, library, asked, error, says):
    with pytest.raises(error) as caught:
        client.run(library.images.generate(**asked))
    assert says in caught.value.body["message"]
    assert caught.value.code in caught.value.response.json()["type"]


@pytest.mark.parametrize(("sent", "status"), [("x", 400), ("[]", 422), ("", 422), ("{}", 422)])
def test_a_body_that_is_none_is_said_as_by_generate(client, sent, status):
    headers = {"content-type": "application/json"}
    answer = client.request("POST", "/v1/images/generations", content=sent, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == answer.json()["detail"]


@pytest.mark.parametrize(
    ("asked", "param"),
    [({"n": 1000}, "n"), ({"n": 0}, "n"), ({"size": "1x1"}, "size"), ({"prompt": "unicorn"}, None)],
)
def test_an_error_names_the_parameter_that_is_to_blame(client, library, asked, param):
    with pytest.raises(openai.APIStatusError) as caught:
        client.run(library.images.generate(**{"prompt": "2", **asked}))
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_more_images_than_a_key_may_ever_ask_for_are_a_bad_request_too(models, tmp_path):
    made = new_key("alice")
    (tmp_path / "keys").write_text(made.line)
    settings = Settings(models=models, keys=tmp_path / "keys", rate=1, burst=2)
    with Client(create_app(settings)) as client:
        with pytest.raises(openai.BadRequestError, match="at most 2 images at once") as caught:
            client.run(openai_over(client, made.secret).images.generate(prompt="2", n=3))
        assert caught.value.param == "n"
        headers = {"x-api-key": made.secret}
        assert (
            client.request("POST", "/generate", json={"n": 3}, headers=headers).status_code == 413
        )


def test_a_field_of_generate_is_refused_here_and_any_other_passed_over(client):
    body = {"prompt": "2", "seed": 7, "class_label": 1, "toward": 8, "quality": "high"}
    answer = client.request("POST", "/v1/images/generations", json=body)
    assert answer.status_code == 422
    assert set(answer.json()["errors"]) == {"class_label", "toward"}
    assert "the prompt names the class" in answer.json()["error"]["message"]
    kept = {name: it for name, it in body.items() if name not in answer.json()["errors"]}
    assert client.request("POST", "/v1/images/generations", json=kept).status_code == 200


def test_what_cannot_be_done_is_refused_and_not_passed_over(client):
    body = {"prompt": "2", "stream": True}
    answer = client.request("POST", "/v1/images/generations", json=body)
    assert answer.status_code == 422
    assert "stream" in answer.json()["error"]["message"]


def test_a_missing_or_unknown_key_is_said_in_openai_s_words_too(models, tmp_path):
    made = new_key("alice")
    (tmp_path / "keys").write_text(made.line)
    with Client(create_app(Settings(models=models, keys=tmp_path / "keys"))) as client:
        assert client.run(openai_over(client, made.secret).models.list()).data
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.run(openai_over(client, "wrong").models.list())
        assert "does not know the API key" in caught.value.body["message"]
        assert "error" not in client.get("/models").json()


def test_it_is_counted_by_its_own_route(client):
    body = {"prompt": "2", "n": 2}
    client.request("POST", "/v1/images/generations", json=body)
    told = client.get("/metrics").text
    assert (
        'sid_requests_total{model="tiny",route="/v1/images/generations",status="200"} 1.0' in told
    )
