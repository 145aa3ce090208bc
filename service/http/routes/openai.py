"""/v1: images for tools that speak OpenAI's API and nothing else. The prompt is a class.

Source: OpenAI's API reference, "Create image" and "List models". What such tools send along and
means nothing here (quality, style, user, ...) is not looked at, but for fields of POST /generate.
"""

import asyncio
import base64
from time import time
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Body, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    TypeAdapter,
)

from service.exceptions import RefusedError
from service.http.fast_route import FastRoute
from service.http.problems import responses
from service.http.public_address import public_address
from service.http.routes import tags
from service.http.routes.handlers import deadline_of, draw, priority_of, resolve
from service.http.routes.requests import GenerateRequest, WholeNumber
from service.serving.catalogue import Catalogue
from service.serving.encoding import JPEG, PNG, WEBP
from service.serving.jobs import ImageJob, ImageResult
from service.serving.served_model import ServedModel
from service.settings import Settings

generation_router = APIRouter(prefix="/v1", route_class=FastRoute, tags=[tags.OPENAI])
router = APIRouter(prefix="/v1", tags=[tags.OPENAI])

# Strict first: 0 equals False.
False_ = Annotated[Literal[False], BeforeValidator(TypeAdapter(StrictBool).validate_python)]

_MEDIA_TYPES = {"png": PNG, "webp": WEBP, "jpeg": JPEG}


class SizeNotAvailableError(RefusedError):
    """The model draws images of one size, and the request names another."""

    status, kind, param = 422, "size-not-available", "size"


class ImagesRequest(BaseModel):
    """What to draw, in OpenAI's words."""

    # Unknown fields pass, for tools send many, but for those of POST /generate.
    model_config = ConfigDict(extra="allow", frozen=True)

    prompt: StrictStr = Field(
        description="Class index or name, as in POST /generate. Blank: each image's seed modulo "
        "the number of classes. Not looked at where the model has no classes.",
        examples=["Dress"],
    )
    model: StrictStr | None = Field(
        default=None, description="Which model. Left out: the default, which GET /models tells."
    )
    n: WholeNumber | None = Field(default=None, ge=1, description="How many images; 1.")
    size: StrictStr | None = Field(
        default=None,
        description="`auto`, or the model's own size, such as 28x28; there is no other.",
        examples=["auto"],
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None,
        description="b64_json: the files, the default. url: addresses of GET /generate, where "
        "each image is drawn when it is fetched (with an API key, where keys are asked for).",
    )
    output_format: Literal["png", "webp", "jpeg"] | None = Field(
        default=None, description="Of b64_json: png, webp (both exact) or jpeg. Default: png."
    )
    seed: WholeNumber | None = Field(
        default=None,
        description="Not in OpenAI's API: image i has the seed `seed` + i. Left out: random.",
        examples=[7],
    )
    stream: False_ | None = Field(
        default=None, description="An image is drawn in one call: there is nothing to stream."
    )


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None = Field(default=None, description="The file, in base64.")
    url: str | None = None
    seed: int = Field(description="Draws this image again. Not in OpenAI's API.")


class ImagesResponse(BaseModel):
    """The images, in OpenAI's words."""

    created: int = Field(description="Unix time, seconds.")
    data: list[ImageData]
    output_format: str
    size: str
    model: str = Field(description="name:version:digest:graph. Not in OpenAI's API.")


class OpenAIModel(BaseModel):
    """One model, in OpenAI's words."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Not known: 0.")
    owned_by: str = "sid-serve"


class OpenAIModels(BaseModel):
    """The catalogue, in OpenAI's words."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


@generation_router.post(
    "/images/generations",
    summary="Draw images, as OpenAI's API does",
    response_model=ImagesResponse,
    responses=responses(400, 401, 403, 404, 408, 413, 415, 422, 429, 503, 504),
)
async def generate_images(request: Request, body: Annotated[ImagesRequest, Body()]) -> Response:
    """Draw images for tools that know no other API; `POST /generate` says the same more plainly.

    X-Deadline-Ms and X-Priority mean what they mean there.

    Errors carry OpenAI's `error` beside the problem's own members. More images than one request may
    ask for are a 400, as in that API, and `error.param` is `n`.
    """
    _refuse_fields_of_generate(body)
    deadline, priority = deadline_of(request), priority_of(request)
    output = "png" if body.response_format == "url" else body.output_format or "png"
    catalogue: Catalogue = request.app.state.catalogue
    label = body.prompt if catalogue.resolve(body.model).bundle.manifest.classes else ""
    parameters = GenerateRequest(
        model=body.model, class_label=label.strip() or None, seed=body.seed, n=body.n or 1
    )
    model, jobs = resolve(request, parameters, _MEDIA_TYPES[output])
    size = _check_size(model, body.size)
    if body.response_format == "url":
        data = [ImageData(url=_url(request, model, job), seed=job.seed) for job in jobs]
    else:
        results = await draw(request, model, jobs, deadline, priority)
        data = await asyncio.to_thread(_encoded, results)
    images = ImagesResponse(
        created=int(time()), data=data, output_format=output, size=size, model=model.tag
    )
    return Response(images.model_dump_json(exclude_none=True), media_type="application/json")


@router.get("/models", summary="List the models, as OpenAI's API does")
async def list_openai_models(request: Request) -> OpenAIModels:
    """Every served model by name; `GET /models` says more."""
    catalogue: Catalogue = request.app.state.catalogue
    return OpenAIModels(data=[OpenAIModel(id=name) for name in catalogue.models])


@router.get(
    "/models/{model}",
    summary="Describe a model, as OpenAI's API does",
    responses=responses(404, 422),
)
async def describe_openai_model(request: Request, model: str) -> OpenAIModel:
    """Whether a model is served, by its name or tag; `GET /models/{name}` says more of it."""
    catalogue: Catalogue = request.app.state.catalogue
    catalogue.resolve(model)
    return OpenAIModel(id=model)


def _refuse_fields_of_generate(body: ImagesRequest) -> None:
    """Refuse what no tool sends but who knows POST /generate, and would believe to be followed."""
    ours = [name for name in body.model_extra or () if name in GenerateRequest.model_fields]
    if ours:
        message = "no such field here, but in POST /generate; here the prompt names the class"
        raise RequestValidationError(
            [{"type": "elsewhere", "loc": ("body", name), "msg": message} for name in ours]
        )


def _check_size(model: ServedModel, size: str | None) -> str:
    height, width, _ = model.bundle.manifest.image_shape
    native = f"{width}x{height}"
    if size not in (None, "auto", native):
        detail = f"{model.name} draws images of {native}, not {size}: say size {native}, or auto"
        raise SizeNotAvailableError(detail, sizes=[native, "auto"])
    return native


def _encoded(images: list[ImageResult]) -> list[ImageData]:
    return [
        ImageData(b64_json=base64.b64encode(result.file).decode("ascii"), seed=result.job.seed)
        for result in images
    ]


def _url(request: Request, model: ServedModel, job: ImageJob) -> str:
    """The address of an image: of this very graph, so that it may be kept for ever."""
    query: dict[str, Any] = {"model": model.tag, "seed": job.seed}
    if job.class_label is not None:
        query["class_label"] = job.class_label
    settings: Settings = request.app.state.settings
    base = public_address(request.scope, settings.public_url, settings.trusted_proxies)
    return f"{base}/generate?{urlencode(query)}"
