"""The families of networks, by the names that records of a network give to their architecture."""

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from distill.networks.edm import EdmConfig
from distill.networks.edm2 import Edm2Config
from distill.networks.family import NetworkLayout

FAMILIES: dict[str, type[NetworkLayout]] = {
    "ddpmpp": EdmConfig,
    "ncsnpp": EdmConfig,
    "adm": EdmConfig,
    "edm2": Edm2Config,
}
# Records that were written before there were architectures are of this one.
FIRST = "ddpmpp"


def family_of(record: Any) -> type[NetworkLayout]:
    """The class of the configuration that a record describes; raises ValueError if none does."""
    if not isinstance(record, dict):
        raise ValueError(f"a network is described by named fields, not by {record!r:.40}")
    architecture = record.get("architecture", FIRST)
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        raise ValueError(
            f"architecture {architecture!r:.40} is not known: choose one of {', '.join(FAMILIES)}"
        )
    return family


def read_config(record: Any) -> NetworkLayout:
    """Make of a record, as checkpoints and recipes hold it, the configuration of its family.

    Args:
        record: the fields by name; one that already is a configuration is returned.

    Raises:
        ValueError: its architecture is unknown, or (pydantic's ValidationError) a field is
            unknown, missing or out of range, or the network cannot be built.
    """
    if isinstance(record, NetworkLayout):
        return record
    return family_of(record).model_validate(record)


# A field of a pydantic model that holds the configuration of any family.
AnyNetwork = Annotated[SerializeAsAny[NetworkLayout], BeforeValidator(read_config)]
