"""The work of one batch around the graph: its inputs before it, files after it."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service.bundle import ClassInput, Input, Manifest, NoiseInput, latents
from service.engines import Images, Inputs, Prepared
from service.observability.tracing import BatchTrace
from service.serving.encoding import PIXELS, PNG, encode
from service.serving.interpolation import slerp
from service.serving.jobs import ImageJob
from service.serving.provenance import text_of


class Drawn(NamedTuple):
    """A batch that was computed and encoded.

    Attributes:
        images: uint8 [N, H, W, C].
        files: each image encoded as its job asks; empty for the media type PIXELS.
        latents_seconds: how long making the graph's inputs took.
        encode_seconds: how long encoding took.
    """

    images: Images
    files: list[bytes]
    latents_seconds: float
    encode_seconds: float


def batch_work(
    jobs: Sequence[ImageJob], manifest: Manifest, trace: BatchTrace, drawn_by: str | None
) -> tuple[Callable[[], Prepared], Callable[[Images], Drawn]]:
    """What an engine has to do before and after the graph (see `Engine.generate`), timed.

    Both run in the engine's thread, `prepare` first. `drawn_by` is the tag that PNG files name
    as what drew them; None: they name nothing.
    """
    latents_seconds = 0.0

    def prepare() -> Prepared:
        nonlocal latents_seconds
        started = perf_counter()
        inputs = graph_inputs(jobs, manifest)
        latents_seconds = perf_counter() - started
        return Prepared(inputs, trace.start_engine())

    def finish(images: Images) -> Drawn:
        trace.end_engine()
        started = perf_counter()
        files = encode_files(images, jobs, drawn_by)
        return Drawn(images, files, latents_seconds, perf_counter() - started)

    return prepare, finish


def graph_inputs(jobs: Sequence[ImageJob], manifest: Manifest) -> Inputs:
    """What the graph takes of these jobs, each input as its kind says (see `bundle.inputs`)."""
    return {one.name: _rows(one, jobs) for one in manifest.inputs}


def _rows(one: Input, jobs: Sequence[ImageJob]) -> npt.NDArray[Any]:
    """One input of the graph: one row per job, in the input's own type."""
    if isinstance(one, NoiseInput):
        return _noise(jobs, one.shape)
    if isinstance(one, ClassInput):
        return np.array([job.class_label for job in jobs], dtype=one.dtype)
    return np.array([job.inputs[one.name] for job in jobs], dtype=one.dtype)


def _noise(jobs: Sequence[ImageJob], shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Noise from the seeds, taken along its walk where a job has one."""
    noise = latents([job.seed for job in jobs], shape)
    walks = {i: job.toward for i, job in enumerate(jobs) if job.toward is not None}
    if walks:
        ends = latents(list(walks.values()), shape)
        for i, end in zip(walks, ends, strict=True):
            noise[i] = slerp(noise[i], end, jobs[i].mix)
    return noise


def encode_files(
    images: Images, jobs: Sequence[ImageJob], drawn_by: str | None = None
) -> list[bytes]:
    """Each image as the file that its job asks for; empty for the media type PIXELS."""
    return [
        b"" if job.media_type == PIXELS else encode(image, job.media_type, _note(job, drawn_by))
        for image, job in zip(images, jobs, strict=True)
    ]


def _note(job: ImageJob, drawn_by: str | None) -> bytes:
    return text_of(drawn_by, job) if drawn_by and job.media_type == PNG else b""
