"""POST /generate: a class and a seed in, a picture out."""

import base64
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from service.bundle import SEED_MAX
from service.catalogue import Catalogue
from service.encoding import JSON, PNG
from service.errors import ProblemError, responses
from service.generation import Picture
from service.routes.accept import choose
from service.routes.disconnect import ClientDisconnectedError, unless_disconnected

router = APIRouter()

_OFFERED = (PNG, JSON)
_CLIENT_LEFT = 499  # nobody reads it; it tells such requests apart in metrics and logs


class GenerateRequest(BaseModel):
    """What to draw. Everything may be left out; the answer reports what was chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: StrictStr | None = Field(
        default=None, description="Which model; needed only where several are served."
    )
    class_label: StrictInt | StrictStr | None = Field(
        default=None,
        description="Class index, or class name in any case. Left out: a random class.",
        examples=["Dress", 3],
    )
    seed: StrictInt | None = Field(
        default=None,
        description="The same model, class and seed give the same bytes. Seeds that are equal "
        "modulo 2^32 give the same picture. Left out: a random seed.",
        # Described here, checked by the domain, whose message says the range.
        json_schema_extra={"minimum": 0, "maximum": SEED_MAX},
        examples=[7],
    )


_ANYTHING = GenerateRequest()


class GeneratedImage(BaseModel):
    """One picture of a JSON answer."""

    class_label: int | None = Field(description="Class index; null for an unconditional model.")
    class_name: str | None
    seed: int
    png: str = Field(description="The PNG file, in base64.")


class GenerateResponse(BaseModel):
    """The JSON answer."""

    model: str = Field(description="name:version:digest, which names the exact weights.")
    images: list[GeneratedImage]


@router.post(
    "/generate",
    summary="Draw a picture",
    response_class=Response,
    responses={
        200: {
            "description": "The picture, as the Accept header prefers.",
            "content": {
                PNG: {"schema": {"type": "string", "format": "binary"}},
            },
            "model": GenerateResponse,  # the schema of application/json
        },
        **responses(400, 404, 406, 415, 422, 429, 503),
    },
)
async def generate(
    request: Request, body: Annotated[GenerateRequest, Body()] = _ANYTHING
) -> Response:
    """Draw one picture in a single step of the network.

    `Accept: image/png` (the default) answers with the file, and says what it shows in the
    headers X-Seed, X-Class-Label and X-Model; `Accept: application/json` with both in one.
    """
    media_type = choose(", ".join(request.headers.getlist("accept")), _OFFERED)
    if media_type is None:
        offered = list(_OFFERED)
        raise ProblemError(
            406, "not-acceptable", f"this answers with {' or '.join(offered)}", offered=offered
        )
    catalogue: Catalogue = request.app.state.catalogue
    model = catalogue.resolve(body.model)
    request.state.model = model.name
    try:
        picture = await unless_disconnected(request, model.generate(body.class_label, body.seed))
    except ClientDisconnectedError:
        return Response(status_code=_CLIENT_LEFT)
    if media_type == JSON:
        return Response(_as_json(picture), media_type=JSON, headers=_headers(picture))
    return Response(picture.png, media_type=PNG, headers=_headers(picture))


def _as_json(picture: Picture) -> str:
    image = GeneratedImage(
        class_label=picture.class_label,
        class_name=picture.class_name,
        seed=picture.seed,
        png=base64.b64encode(picture.png).decode("ascii"),
    )
    return GenerateResponse(model=picture.model, images=[image]).model_dump_json()


def _headers(picture: Picture) -> dict[str, str]:
    headers = {
        "X-Seed": str(picture.seed),
        "X-Model": picture.model,
        "Server-Timing": ", ".join(
            f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in vars(picture.timings).items()
        ),
        "Vary": "Accept",
    }
    if picture.class_label is not None:  # the index: names need not be ASCII, headers must
        headers["X-Class-Label"] = str(picture.class_label)
    return headers
