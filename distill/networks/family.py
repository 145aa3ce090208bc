"""What a family of networks is to the rest: a record that builds it, and a handful of members.

Training, sampling and export know the two classes below and no family by name. A new family is one
file here, with a subclass of each, and its line in `distill.networks.registry`
(docs/extending.md, "A network").
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor, nn
from torch.nn import functional as F

from distill.networks.preconditioning import Preconditioning


class NetworkLayout(BaseModel, ABC):
    """What it takes to build a network anew, as it is stored beside the weights.

    A family adds its own numbers, and refuses what it cannot build with a ValueError that says
    what would do. A family without augmentation labels or without dropout refuses a value other
    than 0 in the same way, for nobody else would.

    Attributes:
        architecture: the name under which `distill.networks.registry` knows the family.
        img_resolution: height and width of input and output.
        img_channels: channels of input and output.
        label_dim: number of classes, 0 for an unconditional network.
        augment_dim: width of the augmentation labels, 0 for none.
        dropout: probability of dropping an activation while the network learns.
        preconditioning: what stands around the network, see `distill.networks.preconditioning`.
        added_later: fields that records did not always have. They are left out where they say
            their default: a run that began before them is resumed, and its record compares equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    added_later: ClassVar[tuple[str, ...]] = ("preconditioning",)

    architecture: str
    img_resolution: int = Field(ge=4)
    img_channels: int = Field(ge=1)
    label_dim: int = Field(default=0, ge=0)
    augment_dim: int = Field(default=0, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    preconditioning: Preconditioning = "edm"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the noise of one image: channels, height, width."""
        return self.img_channels, self.img_resolution, self.img_resolution

    @property
    def is_uncertain(self) -> bool:
        """Whether the network has a head for `RawNetwork.uncertainty`."""
        return False

    @abstractmethod
    def build(self) -> "RawNetwork":
        """Build the network with fresh weights, drawn from torch's global generator."""

    def for_drawing(self) -> Self:
        """The layout of the same network once `RawNetwork.strip` was called: here it is this."""
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        for name in self.added_later:
            if getattr(self, name) == type(self).model_fields[name].default:
                fields.pop(name, None)
        return fields


class RawNetwork(nn.Module, ABC):
    """The raw network F(c_in x, c_noise, labels) inside the preconditioning.

    Noise level and labels become one embedding, then an encoder and a decoder use it. The encoder
    stands apart because a discriminator reads what it ends in.

    Attributes:
        discriminates: whether what `encode` ends in can serve as a discriminator; a family whose
            encoder does next to nothing says that it cannot.
    """

    discriminates: ClassVar[bool] = True

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Map x [N, C, H, W], c_noise [N] or [1], one-hot labels [N, label_dim] to [N, C, H, W]."""
        return self.draw(x, self.embed(c_noise, class_labels, augment_labels))

    def draw(self, x: Tensor, emb: Tensor) -> Tensor:
        """What is left of `forward` when the embedding [N, width] or [1, width] is known."""
        return self.decode(self.encode(x, emb), emb)

    @abstractmethod
    def embed(
        self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Embed noise level, class and augmentation: [N, width], or [1, width] if all are alike."""

    @abstractmethod
    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Map x [N, C, H, W] to feature maps [N, C', H', W'], the last one the deepest."""

    @abstractmethod
    def decode(self, features: list[Tensor], emb: Tensor) -> Tensor:
        """Map what `encode` returned, which may be used up, to [N, C, H, W]."""

    @abstractmethod
    def blocks(self) -> Iterable[nn.Module]:
        """The parts that compute one after the other: sharding holds one of them whole at a time.

        They are disjoint, have parameters, and are used through their `forward` alone.
        """

    def uncertainty(self, c_noise: Tensor) -> Tensor | None:  # noqa: ARG002
        """How far the denoiser may be off at noise levels: u [N, 1, 1, 1], ln of a variance.

        Where a family has a head for it, the denoising loss is divided by e^u and u is added, so
        that each noise level finds its own weight (EDM2, arXiv 2312.02696, equation 21). Here
        there is none.

        Args:
            c_noise: [N] or [1].
        """
        return None

    def strip(self) -> None:
        """Drop, in place, what only a loss of a training reads: here there is nothing."""

    def unit_weights(self) -> list[nn.Parameter]:
        """Weights whose rows (all but the first axis) are held at a root mean square of one.

        They are while the network learns, after each step: forced weight normalisation (EDM2,
        equation 66). Here there are none.
        """
        return []

    def fold(self, emb: Tensor) -> nn.Module:
        """Prepare, in place, for drawing with one of few embeddings alone: the export's form.

        This one keeps the embeddings as they are; a family may compute more of itself beforehand.

        Args:
            emb: float32 [rows, width], for each step of the generator a row for each class, or one
                row without classes.

        Returns:
            A module that maps rows int64 [N] to what `draw` takes as `emb` from now on; of one row
            it returns that, whatever it is asked.
        """
        return Table(emb)


class Table(nn.Module):
    """Looks up [rows, width] by row: int64 [N] to [N, width], or [1, width] of one row."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.clone())

    def forward(self, rows: Tensor) -> Tensor:
        """Return these rows."""
        return F.embedding(rows, self.table) if len(self.table) > 1 else self.table
