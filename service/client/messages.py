"""What is sent and what comes back: requests to bodies, answers to images. No I/O here."""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.request import getproxies, proxy_bypass

import httpx

from .errors import AnswerError, ClientError, UnreachableError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ClassLabel = int | str
"""A class's index, or its name in any case."""
Inputs = Mapping[str, int | Sequence[float]]
"""A model's labels and vectors by name: {"style": 3, "mix": [0.2, 0.8]}."""
Form = Literal["png", "webp", "jpeg"]
"""PNG and WebP hold the exact pixels; JPEG is smaller and does not."""
Priority = Literal["interactive", "bulk", "background"]
"""Whose requests a busy server draws first; a key may have less than it asks for."""

_PROBLEM = "urn:sid-serve:problem:"
_STAGE = re.compile(r"([a-z]+);dur=([0-9.]+)")
_FILE_NAME = re.compile(r"(?:class([0-9]+)-)?seed([0-9]+)[^/]*\.png")
_TRANSIENT = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


@dataclass(frozen=True)
class GeneratedImage:
    """One image, and what it takes to draw it again.

    Attributes:
        content: the file's bytes.
        media_type: which file: image/png, image/webp or image/jpeg.
        seed: its seed.
        class_label: class index; None from a model without classes.
        model: name:version:digest:graph, which names what drew it: the exact weights, and the
            form and precision of their graph.
        timings: milliseconds that it took in the server, by stage: queue, latents, engine,
            encode. Of several images in one request the longest of each stage.
        inputs: the values of the model's labels and vectors; empty: it has none.
    """

    content: bytes
    media_type: str
    seed: int
    class_label: int | None
    model: str
    timings: Mapping[str, float]
    inputs: Inputs = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the file, as it came, whatever the name's suffix. Raises OSError."""
        Path(path).write_bytes(self.content)

    def pixels(self) -> "npt.NDArray[np.uint8]":
        """The pixels, uint8 [H, W, C]; C is 1 (grey) or 3 (RGB; WebP has no grey).

        Needs numpy and Pillow, which nothing else here does: raises ImportError without them.
        """
        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(self.content)) as image:
            array = np.asarray(image)
        return array if array.ndim == 3 else array[:, :, None]


@dataclass(frozen=True)
class ModelCard:
    """What a server says of one of its models.

    Attributes:
        name: what requests call it.
        version: its version.
        digest: names the exact weights, with name and version.
        tag: name:version:digest:graph, which names what draws; as the model of a request, this or
            nothing.
        classes: names by index; empty for a model without classes.
        resolution: height and width in pixels.
        channels: 1 is grey, 3 is RGB.
        licence: of the weights.
        description: what it draws.
        steps: network evaluations an image takes.
        default: whether a request that names no model gets it.
    """

    name: str
    version: int
    digest: str
    tag: str
    classes: tuple[str, ...]
    resolution: int
    channels: int
    licence: str
    description: str
    default: bool = False  # which older servers do not say
    steps: int = 1  # the same: they have models of one step alone, or do not tell


def read_image(response: httpx.Response) -> GeneratedImage:
    """The image of a good answer; raises AnswerError if there is none in it."""
    media_type = response.headers.get("content-type", "")
    if not media_type.startswith("image/") or "x-seed" not in response.headers:
        raise _unexpected(response)
    label = response.headers.get("x-class-label")
    return GeneratedImage(
        content=response.content,
        media_type=media_type,
        seed=int(response.headers["x-seed"]),
        class_label=None if label is None else int(label),
        model=response.headers.get("x-model", ""),
        timings=_timings(response),
        inputs=_inputs(response),
    )


def read_images(response: httpx.Response) -> list[GeneratedImage]:
    """The images of a good answer that is a .zip; raises AnswerError if it is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            files = [
                (_FILE_NAME.fullmatch(name), archive.read(name)) for name in archive.namelist()
            ]
    except zipfile.BadZipFile:
        raise _unexpected(response) from None
    timings, model = _timings(response), response.headers.get("x-model", "")
    inputs = _inputs(response)
    images = []
    for name, content in files:
        if name is None:
            raise _unexpected(response)
        label = None if name[1] is None else int(name[1])
        image = GeneratedImage(content, "image/png", int(name[2]), label, model, timings, inputs)
        images.append(image)
    if not images:
        raise _unexpected(response)
    return images


def read_models(response: httpx.Response) -> list[ModelCard]:
    """The catalogue of a good answer; raises AnswerError if it is none."""
    field_names = [one.name for one in fields(ModelCard)]
    try:
        cards = [
            {name: card[name] for name in field_names if name in card}
            for card in response.json()["models"]
        ]
        return [ModelCard(**card | {"classes": tuple(card["classes"])}) for card in cards]
    except (ValueError, KeyError, TypeError):
        raise _unexpected(response) from None


def read_error(response: httpx.Response) -> AnswerError:
    """What an answer that is no success says."""
    try:
        problem: dict[str, Any] = response.json()
        kind = problem["type"].removeprefix(_PROBLEM)
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return _unexpected(response)
    if kind == "key-required" and "x-api-key" not in response.request.headers:
        detail += "; this client was given none: give it yours as `key`"
    return AnswerError(response.status_code, kind, detail, problem, _retry_after(response))


def unreachable(error: httpx.HTTPError, url: str, timeout: float) -> ClientError:
    """What a failure of the network says. `timeout` is in seconds."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return UnreachableError(f"{url}: no answer within {timeout:g} s", again=False)
    why = str(error) or type(error).__name__
    if proxy := proxy_for(url):
        detail = (
            f"{url} cannot be reached through {proxy}, which the environment names ({why}): if no "
            f"proxy is needed, NO_PROXY={httpx.URL(url).host} passes it by"
        )
    else:
        detail = f"{url} cannot be reached ({why}): is a server running there?"
    return UnreachableError(
        detail,
        again=isinstance(error, _TRANSIENT),
    )


def check_url(url: str) -> str:
    """Return a server's address; raises ClientError for what is none."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(f"{url!r} is no address of a server, such as http://127.0.0.1:8000")
    return url.rstrip("/")


def proxy_for(url: str) -> str | None:
    """The proxy that the environment (HTTP_PROXY) names for a server, without its password.

    None for this machine's own addresses: no proxy can reach those, whatever NO_PROXY says.
    """
    parsed = httpx.URL(url)
    if _is_this_machine(parsed.host) or proxy_bypass(parsed.host):
        return None
    proxies = getproxies()
    named = proxies.get(parsed.scheme) or proxies.get("all")
    return named.rpartition("@")[2] if named else None


def _is_this_machine(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def headers_for(key: str | None, priority: Priority | None) -> dict[str, str]:
    """The headers of every request.

    Raises:
        ClientError: no header can hold the key, or there is no such priority.
    """
    headers: dict[str, str] = {}
    if key is not None:
        if not (key and key.isascii() and key.isprintable()):
            raise ClientError(
                "the API key holds other characters than a key can: is it the right one?"
            )
        headers["X-API-Key"] = key
    if priority is not None:
        if priority not in get_args(Priority):
            wanted = ", ".join(get_args(Priority))
            raise ClientError(f"a priority is one of {wanted}, not {priority!r}")
        headers["X-Priority"] = priority
    return headers


def _unexpected(response: httpx.Response) -> AnswerError:
    """Not in the words of SiD Serve: a proxy's page, or another server."""
    kind = response.headers.get("content-type", "nothing").partition(";")[0]
    answered = f"{response.status_code} {response.reason_phrase}".strip()
    detail = (
        f"{response.request.url} answered {answered} with {kind}, which is not SiD Serve's: "
        "is that its address, and what stands before it well?"
    )
    return AnswerError(response.status_code, "", detail, {}, _retry_after(response))


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds; the form with a date, which SiD Serve never sends, counts as unsaid."""
    header = response.headers.get("retry-after", "")
    return float(header) if re.fullmatch(r"[0-9]{1,6}", header) else None


def _timings(response: httpx.Response) -> dict[str, float]:
    header = response.headers.get("server-timing", "")
    return {stage: float(duration) for stage, duration in _STAGE.findall(header)}


def _inputs(response: httpx.Response) -> Inputs:
    """Of all images of an answer: they were asked for together."""
    try:
        values = json.loads(response.headers.get("x-inputs", "{}"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise _unexpected(response)
    return values
