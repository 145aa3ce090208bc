"""Images of a bulk run from a server, as fast as it draws them and without crowding others."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, cast

from service.bulk.errors import BulkError, PostponedError
from service.bulk.plan import Drawn, Piece
from service.bulk.window import Window
from service.bundle import PROCESSOR_PIXELS, batch_limit
from service.client import (
    AnswerError,
    AsyncClient,
    ClassLabel,
    ClientError,
    Form,
    GeneratedImage,
    ModelCard,
    Priority,
)
from service.client.retries import pause
from service.serving.catalogue import pick

_PIECE = 16
# Seconds. A wrong address should show at once; a server that restarts under a long run should
# not end it; and an answer may take as long as a large network and the queue before it.
_FIRST_PATIENCE, _PATIENCE, _TIMEOUT = 2.0, 60.0, 300.0
_TRIES = 3  # as if so many had failed: pauses of about a second where the server names none


class ServerSource:
    """Draws pieces by requests. `piece` is how many images to ask for together.

    Args:
        client: which tries nothing again by itself: `draw` has to see each refusal.
        patient: which does, for questions before the run.
        card: of the model.
        form: png, webp or jpeg.
        inputs: labels and vectors of the model that all images have.
    """

    def __init__(
        self,
        client: AsyncClient,
        patient: AsyncClient,
        card: ModelCard,
        form: str,
        inputs: Mapping[str, Any],
    ) -> None:
        self.model = card.tag
        self.classes: Sequence[str] = card.classes
        self.inputs = inputs
        self._client, self._patient = client, patient
        self._form = cast(Form, form)
        self.piece = batch_limit(_PIECE, [card.resolution] * 2, PROCESSOR_PIXELS)
        self._most = self.piece if form == "png" else 1  # a .zip holds PNG files only
        self._window = Window()
        self._heard = monotonic()

    @property
    def slots(self) -> int:
        """How many pieces may be under way."""
        return self._window.size

    async def resolve(self, label: str) -> int | None:
        """The index of a class; raises AnswerError for what is none."""
        return (await self._patient.generate(label, 0, model=self.model)).class_label

    async def draw(self, piece: Piece) -> list[bytes]:
        """The files of a piece's first images: as many as one request may ask for.

        Raises:
            PostponedError: the server refuses for now, or has been silent for less than a minute.
            ClientError: it refuses for good, or has been silent for longer.
        """
        while True:
            count = min(piece.count, self._most)
            sent_at = monotonic()
            try:
                images = await self._request(piece.class_label, piece.first, count)
            except ClientError as error:
                if isinstance(error, AnswerError) and error.status == 413 and count > 1:
                    most = error.members.get("most", count // 2)  # of a key's burst unsaid
                    self._most = max(1, min(self._most, most, count - 1))
                    continue
                if isinstance(error, AnswerError) and error.status == 429:
                    self._window.refused(sent_at, monotonic())
                    self._heard = monotonic()  # it is well, and has others to serve
                raise self._postponed(error) from None
            self._heard = monotonic()
            timings = images[0].timings
            self._window.answered(
                sent_at, self._heard, timings.get("queue", 0.0), timings.get("engine", 0.0)
            )
            return [image.content for image in images]

    async def _request(self, label: int | None, first: int, count: int) -> list[GeneratedImage]:
        if count > 1:
            return await self._client.batch(
                first, count, label, model=self.model, inputs=self.inputs
            )
        image = await self._client.generate(
            label, first, model=self.model, inputs=self.inputs, form=self._form
        )
        return [image]

    def _postponed(self, error: ClientError) -> Exception:
        """When to try again, or the error itself."""
        seconds = pause(error, _TRIES)
        if seconds is None or monotonic() + seconds > self._heard + _PATIENCE:
            return error
        return PostponedError(seconds)


@asynccontextmanager
async def open_server(
    url: str,
    key: str | None,
    model: str | None,
    form: str,
    inputs: Mapping[str, Any],
    priority: str,
) -> AsyncIterator[ServerSource]:
    """A source for one of a server's models, whose very weights all requests name.

    Raises:
        ClientError: there is no server, it wants another key, or there is no such priority.
        UnknownModelError, ModelRequiredError, BulkError: it has no such model.
    """
    card = await find_model(url, key, model)
    async with (
        AsyncClient(
            url, key=key, timeout=_TIMEOUT, patience=0, priority=cast(Priority, priority)
        ) as client,
        AsyncClient(url, key=key) as patient,
    ):
        yield ServerSource(client, patient, card, form, inputs)


async def find_model(url: str, key: str | None, wanted: str | None) -> ModelCard:
    """The card of a server's model: by name, by tag or the weights of a tag, or the default."""
    async with AsyncClient(url, key=key, patience=_FIRST_PATIENCE) as client:
        cards = {card.name: card for card in await client.models()}
    name, _, pinned = (wanted or "").partition(":")
    default = next((card.name for card in cards.values() if card.default), None)
    card = cards[pick(cards, name if wanted is not None else None, default)]
    if pinned and wanted not in (card.tag, f"{card.name}:{card.version}:{card.digest}"):
        raise BulkError(f"{wanted} is not served: {name} is {card.tag} now")
    return card


async def draw_one(
    url: str,
    key: str | None,
    model: str | None,
    class_label: ClassLabel | None,
    seed: int | None,
    form: str,
    inputs: Mapping[str, Any],
    priority: str | None,
) -> Drawn:
    """One image; raises what `open_server` raises."""
    card = await find_model(url, key, model)
    async with AsyncClient(url, key=key, priority=cast(Priority | None, priority)) as client:
        image = await client.generate(
            class_label, seed, model=card.tag, inputs=inputs, form=cast(Form, form)
        )
    label = image.class_label
    name = None if label is None else card.classes[label]
    return Drawn(image.content, image.seed, label, name, image.model)
