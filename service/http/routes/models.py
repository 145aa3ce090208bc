"""GET /models: the catalogue, from the manifests."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.bundle import Graph, Input, Manifest, Precision, Quality
from service.http.problems import responses
from service.http.routes import tags
from service.serving.catalogue import Catalogue
from service.serving.served_model import ServedModel

router = APIRouter(tags=[tags.MODELS])


class ModelCard(BaseModel):
    """What a client may want to know about a served model."""

    name: str
    version: int
    digest: str = Field(description="Names the exact weights, with name and version.")
    tag: str = Field(
        description="name:version:digest:graph: names what draws, with the form and precision of "
        "its graph. As the `model` of a request it means this and nothing else."
    )
    description: str
    licence: str
    resolution: int = Field(description="Height of an image in pixels; see `images` for both.")
    channels: int = Field(description="1 is grey, 3 is RGB.")
    images: tuple[int, int, int] = Field(description="[height, width, channels] of an image.")
    inputs: list[Input] = Field(
        description="What the graph takes. A request may name a `label` or a `vector` in its own "
        "`inputs`; the others follow from seed and class."
    )
    classes: list[str] = Field(description="Names by index; empty: unconditional.")
    seed_contract: str
    steps: int = Field(description="Network evaluations an image takes, in one call of the graph.")
    training: dict[str, Any]
    quality: Quality | None
    signed_by: str | None = Field(
        description="Fingerprint of the trusted key that signed the bundle, which the server has "
        "checked; null: it asks for no signature (SID_TRUSTED_KEYS)."
    )
    engine: str = Field(description="What draws it, with its version.")
    devices: dict[str, bool] = Field(
        description="Of each device with an engine (SID_DEVICES) whether the engine works now."
    )
    precision: Precision = Field(description="In which the engine computes the network.")
    default: bool = Field(description="Whether a request that names no model gets this one.")
    graph: Graph | None = Field(
        description="The graph that is served: how far its images may be from float32 torch's, "
        "and how far they were; null where the manifest does not say."
    )

    @classmethod
    def of(cls, model: ServedModel, catalogue: Catalogue) -> "ModelCard":
        """Describe a model of a catalogue."""
        manifest, engine = model.bundle.manifest, model.engine
        return cls(
            digest=model.bundle.digest,
            tag=model.tag,
            signed_by=model.bundle.signed_by,
            engine=f"{engine.name} {engine.version}",
            devices=model.pool.devices,
            precision=engine.precision,
            resolution=manifest.image_shape[0],
            channels=manifest.image_shape[2],
            default=model.name == catalogue.default,
            graph=manifest.graphs.get(engine.filename),
            steps=manifest.steps,
            **manifest.model_dump(
                include=(set(cls.model_fields) & set(Manifest.model_fields)) - {"steps"},
            ),
        )


class ModelList(BaseModel):
    """The catalogue."""

    models: list[ModelCard]


@router.get("/models", summary="List the models")
async def list_models(request: Request) -> ModelList:
    """Every served model: its classes, its licence, how it was trained and how good it is."""
    catalogue: Catalogue = request.app.state.catalogue
    return ModelList(
        models=[ModelCard.of(served, catalogue) for served in catalogue.models.values()]
    )


@router.get("/models/{name}", summary="Describe a model", responses=responses(404, 422))
async def describe_model(request: Request, name: str) -> ModelCard:
    """One served model."""
    catalogue: Catalogue = request.app.state.catalogue
    return ModelCard.of(catalogue.resolve(name), catalogue)
