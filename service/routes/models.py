"""GET /models: the catalogue, from the manifests."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.bundle import Quality
from service.catalogue import Catalogue
from service.errors import responses
from service.generation import Model

router = APIRouter()


class ModelCard(BaseModel):
    """What a client may want to know about a served model."""

    name: str
    version: int
    digest: str = Field(description="Names the exact weights, with name and version.")
    description: str
    licence: str
    resolution: int
    channels: int
    classes: list[str] = Field(description="Names by index; empty: unconditional.")
    seed_contract: str
    training: dict[str, Any]
    quality: Quality | None
    engine: str

    @classmethod
    def of(cls, model: Model) -> "ModelCard":
        """Describe a model."""
        manifest = model.bundle.manifest
        return cls(
            digest=model.bundle.digest,
            engine=f"{model.engine.name} {model.engine.version}",
            **manifest.model_dump(
                include=set(cls.model_fields) - {"digest", "engine"},
            ),
        )


class ModelList(BaseModel):
    """The catalogue."""

    models: list[ModelCard]


@router.get("/models", summary="List the models")
async def list_models(request: Request) -> ModelList:
    """Every served model: its classes, its licence, how it was trained and how good it is."""
    catalogue: Catalogue = request.app.state.catalogue
    return ModelList(models=[ModelCard.of(model) for model in catalogue.models.values()])


@router.get("/models/{name}", summary="Describe a model", responses=responses(404))
async def describe_model(request: Request, name: str) -> ModelCard:
    """One served model."""
    catalogue: Catalogue = request.app.state.catalogue
    return ModelCard.of(catalogue.resolve(name))
