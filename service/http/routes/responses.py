"""Images to HTTP answers: which form a client prefers, and the bytes and headers of each."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from fastapi import Request, Response
from pydantic import BaseModel, Field

from service.bundle import Value
from service.exceptions import RefusedError
from service.http.accept import choose
from service.serving.encoding import (
    ENCODER,
    JPEG,
    JSON,
    NPY,
    PIXELS,
    PNG,
    WEBP,
    ZIP,
    npy,
    zip_archive,
)
from service.serving.jobs import ImageJob, ImageResult
from service.serving.served_model import ServedModel

# In order of preference: the first is what a client gets that has none.
ONE = (PNG, WEBP, JPEG, JSON, NPY, ZIP)
SEVERAL = (JSON, ZIP, NPY)
# What the batch encodes for each form; the rest is assembled from that.
_FILES = {NPY: PIXELS, ZIP: PNG, JSON: PNG}


class GeneratedImage(BaseModel):
    """One image of a JSON answer."""

    class_label: int | None = Field(description="Class index; null for an unconditional model.")
    class_name: str | None
    seed: int
    toward: int | None = Field(description="The second seed of a walk; null: no walk.")
    mix: float | None = Field(description="How far along the walk; null: no walk.")
    inputs: dict[str, int | list[float]] = Field(
        description="The values of the model's labels and vectors; empty: it has none."
    )
    png: str = Field(description="The PNG file, in base64.")


class GenerateResponse(BaseModel):
    """The JSON answer."""

    model: str = Field(description="name:version:digest:graph, which names what drew them.")
    images: list[GeneratedImage]


class NotAcceptableError(RefusedError):
    """The client accepts none of the forms in which the answer can be had."""

    status, kind = 406, "not-acceptable"


def choose_form(request: Request, n: int) -> str:
    """Return the media type of the answer that the client prefers.

    Raises:
        NotAcceptableError: it accepts none that holds `n` images.
    """
    offered = ONE if n == 1 else SEVERAL
    form = choose(", ".join(request.headers.getlist("accept")), offered)
    if form is None:
        images = "one image" if n == 1 else f"{n} images"
        raise NotAcceptableError(
            f"{images} can be had as {' or '.join(offered)}",
            offered=list(offered),
        )
    return form


def file_media_type(form: str) -> str:
    """What each image must be encoded as for an answer of this form (see ImageJob.media_type)."""
    return _FILES.get(form, form)


def entity_tag(model: ServedModel, jobs: Sequence[ImageJob], form: str) -> str:
    """A strong ETag over all that fixes an answer's bytes, known before anything is drawn."""
    first = jobs[0]
    labels = {job.class_label for job in jobs}
    parts = (
        model.tag,
        model.engine.name,
        model.engine.version,
        ENCODER,
        model.provenance and file_media_type(form) == PNG,
        form,
        first.seed,
        len(jobs),
        first.class_label if len(labels) == 1 else "by seed",
        first.toward,
        first.mix,
        dict(first.inputs),
    )
    return f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}"'


async def answer(model: ServedModel, images: Sequence[ImageResult], form: str) -> Response:
    """Make the answer of the chosen form; several images are assembled beside the event loop."""
    headers = _headers(model, images)
    if len(images) == 1 and form not in _FILES:
        return Response(images[0].file, media_type=form, headers=headers)
    content = await asyncio.to_thread(_assemble, model, images, form)
    return Response(content, media_type=form, headers=headers)


def _assemble(model: ServedModel, results: Sequence[ImageResult], form: str) -> bytes:
    if form == NPY:
        return npy(np.stack([result.pixels for result in results]))
    if form == ZIP:
        return zip_archive((_file_name(result), result.file) for result in results)
    images = [
        GeneratedImage(
            class_label=result.job.class_label,
            class_name=result.class_name,
            seed=result.job.seed,
            toward=result.job.toward,
            mix=None if result.job.toward is None else result.job.mix,
            inputs=_plain(result.job.inputs),
            png=base64.b64encode(result.file).decode("ascii"),
        )
        for result in results
    ]
    return GenerateResponse(model=model.tag, images=images).model_dump_json().encode()


def _file_name(image: ImageResult) -> str:
    """The class index and not its name, which may hold any character."""
    job = image.job
    label = "" if job.class_label is None else f"class{job.class_label}-"
    walk = "" if job.toward is None else f"-toward{job.toward}-mix{job.mix:g}"
    return f"{label}seed{job.seed}{walk}.png"


def _plain(inputs: Mapping[str, Value]) -> dict[str, int | list[float]]:
    """Labels and vectors as JSON holds them, and as a request names them again."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()
    }


def _headers(model: ServedModel, images: Sequence[ImageResult]) -> dict[str, str]:
    """X-Seed and X-Class-Label are the first image's; Server-Timing the slowest of each stage."""
    job = images[0].job
    timings = images[0].timings
    if len(images) > 1:
        timings = type(timings)(*map(max, zip(*(p.timings for p in images), strict=True)))
    headers = {
        "X-Seed": str(job.seed),
        "X-Model": model.tag,
        "Server-Timing": (
            f"queue;dur={timings.queue * 1000:.3f}, latents;dur={timings.latents * 1000:.3f}, "
            f"engine;dur={timings.engine * 1000:.3f}, encode;dur={timings.encode * 1000:.3f}"
        ),
        "Vary": "Accept",
    }
    if job.class_label is not None:  # the index: names need not be ASCII, headers must
        headers["X-Class-Label"] = str(job.class_label)
    if job.toward is not None:
        headers |= {"X-Toward": str(job.toward), "X-Mix": repr(job.mix)}
    if job.inputs:
        headers["X-Inputs"] = json.dumps(_plain(job.inputs), separators=(",", ":"))
    return headers
