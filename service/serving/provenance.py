"""What a PNG file says of itself: which model drew it, and from what.

It is the JSON body of a `POST /generate` that draws the image again, so it is a function of the
request and of the model alone: no time, no host. In the file it is a tEXt chunk, which every PNG
reader passes by or shows; for that it is ASCII.
"""

from typing import Annotated, Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.bundle import SEED_MAX
from service.bundle.inputs import InputName
from service.serving.jobs import ImageJob

_TAG = (
    r"^[a-z0-9][a-z0-9._-]{0,63}:[1-9][0-9]{0,8}:[0-9a-f]{12}:"
    r"(?:float32|bfloat16|float16)(?:-[a-z]{1,16})?$"
)
Seed = Annotated[int, Field(ge=0, le=SEED_MAX)]


class Provenance(BaseModel):
    """What a file says; that it is true is another matter (see `service.verify`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    model: str = Field(pattern=_TAG)
    seed: Seed
    class_label: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    toward: Seed | None = None
    mix: Annotated[float, Field(ge=0, le=1)] | None = None
    inputs: dict[InputName, int | list[float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole_walk(self) -> Self:
        if (self.toward is None) != (self.mix is None):
            raise ValueError("toward and mix belong together")
        return self

    @property
    def bundle(self) -> str:
        """The bundle's tag: name:version:digest."""
        return self.model.rpartition(":")[0]

    @property
    def graph(self) -> str:
        """Which of its graphs drew: `float32-cpu` (see `bundle.variant`)."""
        return self.model.rpartition(":")[2]


def text_of(tag: str, job: ImageJob) -> bytes:
    """The text of an image that the model `tag` draws: the same for the same image, to the byte.

    So the ends of a walk say what the images of their two seeds say.
    """
    ends = {0.0: job.seed, 1.0: job.toward}
    walks = job.toward is not None and job.mix not in ends
    fields: dict[str, Any] = {"model": tag, "seed": job.seed if walks else ends.get(job.mix)}
    if job.class_label is not None:
        fields["class_label"] = job.class_label
    if walks:
        fields |= {"toward": job.toward, "mix": job.mix}
    if job.inputs:
        fields["inputs"] = job.inputs
    return orjson.dumps(fields)


def parse(text: bytes) -> Provenance:
    """Read what `text_of` has written; raises pydantic's ValidationError for anything else."""
    return Provenance.model_validate_json(text)
