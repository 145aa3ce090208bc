"""A bulk run: keeps pieces of the plan under way, writes what comes, and shows how far it is."""

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from service.bulk.errors import BulkError, PostponedError
from service.bulk.output import Folder, open_output
from service.bulk.plan import ALL_CLASSES, Piece, Plan
from service.client import ClientError
from service.engines import EngineError
from service.serving.exceptions import ComputeError


class Source(Protocol):
    """What draws.

    Attributes:
        model: name:version:digest:graph.
        classes: the model's, by index.
        piece: how many images to ask for together.
        inputs: labels and vectors of the model that all images have.
    """

    model: str
    classes: Sequence[str]
    piece: int
    inputs: Mapping[str, Any]

    @property
    def slots(self) -> int:
        """How many pieces may be under way now."""

    async def resolve(self, label: str) -> int | None:
        """The index of a class."""

    async def draw(self, piece: Piece) -> list[bytes]:
        """The files of a piece's first images, at least one; PostponedError: not now."""


class StoppedError(Exception):
    """The user stopped the run (Ctrl-C, SIGTERM); the message says what is there.

    Args:
        status: what the process exits with, as a shell expects it.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


async def run(
    source: Source, seeds: tuple[range, ...], class_label: str | None, form: str, path: Path
) -> None:
    """Draw every image that is not there yet.

    Args:
        source: what draws.
        seeds: as `parse_seeds` returns them.
        class_label: index, name or `all`; None: each seed modulo the number of classes.
        form: png, webp or jpeg.
        path: a folder, or a file .zip.

    Raises:
        BulkError: it cannot begin, or go on.
        StoppedError: the user does not want it to.
        ClientError, ClassLabelError: there is no such class.
    """
    labels = await _labels(source, class_label)
    plan = Plan(source.model, source.classes, labels, seeds, form, source.inputs)
    output = open_output(path, plan)
    try:
        done = output.begin()
        missing = plan.count
        if done:
            missing = sum(piece.count for piece in plan.pieces(done, source.piece))
        if missing:
            print(_announced(plan, path, missing), flush=True)
            seconds = await _draw(source, plan, output, done, missing)
        output.finish()
    except OSError as error:
        raise BulkError(f"{error.filename or path}: {error.strerror}") from error
    finally:
        output.close()
    if missing:
        rate = f"{missing} drawn in {seconds:.1f} s, {missing / seconds:.0f} a second"
        print(f"{path}: {plan.count} images, {rate}")
    else:
        print(f"{path}: all {plan.count} images are there already")


async def _labels(source: Source, class_label: str | None) -> tuple[int | None, ...]:
    if class_label is None:
        return (None,)
    if class_label.strip().casefold() != ALL_CLASSES:
        return (await source.resolve(class_label),)
    return tuple(range(len(source.classes))) or (None,)


def _announced(plan: Plan, path: Path, missing: int) -> str:
    record = plan.record()
    there = f", {plan.count - missing} of them there already" if missing < plan.count else ""
    return (
        f"{path}: {plan.count} images{there}; seeds {record['seeds']}, "
        f"classes: {record['classes']}, model {plan.model}"
    )


async def _draw(source: Source, plan: Plan, output: Folder, done: set[str], missing: int) -> float:
    """Draw what is missing; returns the seconds that it took."""
    started = monotonic()
    pieces = plan.pieces(done, source.piece)
    with _progress() as progress, _stoppable() as signals:
        shown = progress.add_task("", total=plan.count, completed=plan.count - missing)

        async def one(piece: Piece) -> int:
            files = await source.draw(piece)
            await asyncio.to_thread(output.write, plan.names(piece)[: len(files)], files)
            progress.advance(shown, len(files))
            return len(files)

        try:
            await _run_concurrently(pieces, one, lambda: source.slots)
            return monotonic() - started
        except (ClientError, ComputeError, EngineError, OSError) as error:
            failed = str(error)
            if isinstance(error, OSError):
                failed = f"{error.filename}: {error.strerror}"
            raise BulkError(f"{failed}; {_kept(progress, output)}") from error
        except asyncio.CancelledError:
            if not signals:
                raise
            raise StoppedError(f"stopped: {_kept(progress, output)}", 128 + signals[0]) from None


async def _run_concurrently(
    pieces: Iterator[Piece],
    draw: Callable[[Piece], Coroutine[Any, Any, int]],
    slots: Callable[[], int],
) -> None:
    """Draw all pieces, as many at a time as there are slots; raises what `draw` raises.

    `draw` returns how many of a piece's images it has drawn; the others are a piece again.
    """
    under_way: dict[asyncio.Task[int], Piece] = {}
    again: deque[Piece] = deque()
    opens = 0.0  # until then nothing is begun, because a piece was postponed
    try:
        while True:
            wait = opens - monotonic()
            while wait <= 0 and len(under_way) < slots():
                piece = again.popleft() if again else next(pieces, None)
                if piece is None:
                    break
                under_way[asyncio.create_task(draw(piece))] = piece
            if not under_way:
                if wait <= 0:
                    return
                await asyncio.sleep(wait)
                continue
            ended, _ = await asyncio.wait(
                under_way,
                timeout=wait if wait > 0 else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in ended:
                piece = under_way.pop(task)
                try:
                    if rest := piece.after(task.result()):
                        again.append(rest)
                except PostponedError as error:
                    again.append(piece)
                    opens = max(opens, monotonic() + error.seconds)
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Have Ctrl-C and SIGTERM cancel this task; yields the list to which such a signal is added."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        yield received
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _kept(progress: Progress, output: Folder) -> str:
    task = progress.tasks[0]
    there = f"{task.completed:.0f} of {task.total:.0f} images are in {output.folder}"
    return f"{there}, and the same command goes on"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "", style="progress.data.speed")


def _progress() -> Progress:
    """A bar for a person who watches; a file or a pipe wants none."""
    console = Console(stderr=True)
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
