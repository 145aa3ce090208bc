"""Every knob of the server. Each is also an environment variable: SID_PORT, SID_MODELS, ..."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.addresses import check_public_url, networks, origins
from service.bundle import Precision
from service.resources import available_cpus

_BATCHES_PER_SERVER = 4  # on two instances: two computed, two on their way (docs/notebook.md)
_BATCHES_PER_GPU = 2  # it computes one; noise and files of the other are made meanwhile
# Above these a number is a slip of the pen, and no machine would start or end in good time.
_DEVICE = re.compile(r"cpu|cuda:(0|[1-9][0-9]{0,2})")
_DAY = 86_400  # seconds
_MANY = 1_000_000


class Settings(BaseSettings):
    """Settings of the server, from the command line, then SID_* variables, then defaults."""

    model_config = SettingsConfigDict(env_prefix="SID_", extra="forbid")

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; 0.0.0.0 lets other machines in.",
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="A port of its own for /metrics, on SID_HOST too: the other port then has no "
        "/metrics, and this one nothing else; 0 takes any free one. For servers that strangers "
        "reach: let only Prometheus reach this port. Default: on the server's port, for all.",
    )
    public_url: str | None = Field(
        default=None,
        description="The address at which clients reach this server, such as "
        "https://pictures.example/sid: for the addresses that answers hold. Default: as the "
        "request says it, or the proxies that are trusted.",
    )
    trusted_proxies: str = Field(
        default="127.0.0.0/8,::1",
        description="Addresses and networks of proxies, commas between them, whose Forwarded or "
        "X-Forwarded-Proto, -Host and -Prefix headers are believed; * believes everybody. Name "
        "yours where it is on another machine, and have it replace what clients send.",
    )
    cors_origins: str = Field(
        default="",
        description="Origins of web pages that may call this server from a browser, such as "
        "https://app.example, commas between them; * lets every page. Default: none but the "
        "server's own.",
    )
    models: Path = Field(
        default=Path("models"), description="Folder of the models, to serve others than ours."
    )
    default_model: str | None = Field(
        default=None,
        description="Name of the model that a request gets which names none. Default: what the "
        "file DEFAULT in the folder of models says; else, of several, the one that was alone when "
        "the server started; else none, and each request has to name its model.",
    )
    # Any name here: the engines are registered in serving/engine_selection.py, layers above.
    engine: str | None = Field(
        default=None,
        description="What computes: auto, onnxruntime, openvino, cuda or triton. Default: "
        "onnxruntime, on the processors; or triton where SID_TRITON names servers. openvino (the "
        "package's extra) is faster on some processors, cuda (extra gpu) needs an NVIDIA GPU. auto "
        "tries at the start, and for each new model, what is installed, and takes the fastest that "
        "draws the right image, in float32 unless SID_PRECISION says otherwise: for machines "
        "that you do not know, if some seconds more at the start do not matter.",
    )
    precision: Precision | Literal["any"] | None = Field(
        default=None,
        description="In which the network computes, of those that the model and the engine both "
        "have: others than float32 may be faster, and their images differ within the bounds that "
        "GET /models says. any, with SID_ENGINE=auto only, takes the fastest of all, which may be "
        "another on each machine. Default: float32.",
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Threads of one inference. 1 serves most images of small networks; raise "
        "it to the number of processors when a lone image takes too long.",
    )
    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Batches computed at a time, by each engine of SID_DEVICES. Default: one more "
        "than the processors have threads for, so that none idles between two batches, shared by "
        "the engines there; lower it to leave processors to other programs. On a GPU: 2. Over "
        "Triton: batches sent and not yet answered, 4 for each address; raise it where the servers "
        "have more instances than that, or one name stands for many.",
    )
    devices: str | None = Field(
        default=None,
        description="What computes in this process, commas between them: an engine for each, all "
        "behind one queue. cuda:0,cuda:1 is two cards (SID_ENGINE is then cuda), cuda:1 the second "
        "alone; cpu,cpu is two sessions on the processors, of which one can hang or break while "
        "the other serves, for their memory twice. Default: one engine, on the processors or on "
        "cuda:0 as SID_ENGINE says. Triton's cards are its own: docs/operations.md.",
    )
    triton: str | None = Field(
        default=None,
        description="Triton servers that compute instead of this process: host:port of each one's "
        "gRPC front end, commas between them (then IPv4); or one name for all of a set that "
        "changes. Needs the package's extra `triton`.",
    )
    max_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Largest batch. Default: the engine's own, 64 on a GPU for model.cuda.onnx, "
        "8 elsewhere: on processors larger ones only wait longer (docs/notebook.md), and Triton "
        "joins them; of images above 128x128 fewer (512x512: 4 on a GPU, 1 on processors). Raise "
        "it where larger ones gain throughput.",
    )
    queue_size: int = Field(
        default=256,
        ge=1,
        le=_MANY,
        description="Images that may wait for each model; a low limit refuses clients (429) "
        "instead of having them wait too long. A full queue refuses the lowest priority first.",
    )
    max_images: int = Field(
        default=64,
        ge=1,
        le=_MANY,
        description="Images that one request may ask for; lower it so that one client cannot "
        "fill the queue.",
    )
    provenance: bool = Field(
        default=True,
        description="Whether PNG files hold a text that says which model, class and seed drew "
        "them, for `sid verify`: about 100 bytes. Set it alike on all servers of one address.",
    )
    engine_seconds: float | None = Field(
        default=None,
        ge=0.01,
        le=_DAY,
        description="How long a batch may take before the engine counts as hanging: the model is "
        "taken out and restarted. Default: 30 s; of images above 128x128 ten times what an image "
        "took at the start, if that is more.",
    )
    drain_seconds: float = Field(
        default=0.0,
        ge=0,
        le=_DAY,
        description="How long to serve on after SIGTERM with readiness red; behind a load "
        "balancer, as long as it takes to notice.",
    )
    grace_seconds: float = Field(
        default=20.0,
        gt=0,
        le=_DAY,
        description="How long accepted requests may take to finish at shutdown; keep it below "
        "the time after which your platform kills the process.",
    )
    log_format: Literal["human", "json"] = Field(
        default="human",
        description="Log lines for people, or JSON for a log collector: then each line on standard "
        "output and error is JSON, those of libraries too.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="The least that is logged; at warning there is a line only for requests that "
        "the server failed at (500, 502, 503), which saves the cost of the others, and none for "
        "start, reload and end.",
    )
    traces: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+/?$",
        description="OpenTelemetry collector that traces go to, by OTLP over gRPC: "
        "http://collector:4317. OpenTelemetry's own variables hold too; under load set "
        "OTEL_TRACES_SAMPLER=parentbased_traceidratio and OTEL_TRACES_SAMPLER_ARG=0.01, for all "
        "requests are traced otherwise. Needs the package's extra `tracing`.",
    )
    keys: Path | None = Field(
        default=None,
        description="File of API keys, as `sid key` makes them, to let in only those who hold "
        "one, each with the priority that it says; SIGHUP reads it again. Probes and metrics stay "
        "open.",
    )
    trusted_keys: Path | None = Field(
        default=None,
        description="Public keys of publishers (Ed25519, PEM), a file or a folder of files: only "
        "bundles that one of them signed are served (`sid-distill publish --sign`); SIGHUP reads "
        "them again. Needs the package's extra `signing`. Default: bundles need not be signed.",
    )
    rate: float | None = Field(
        default=None,
        ge=1e-6,
        le=_MANY,
        description="Images per second that each key may ask for, so that one client cannot take "
        "all there is; needs SID_KEYS.",
    )
    burst: int = Field(
        default=64,
        ge=1,
        le=_MANY,
        description="Images that a key may ask for at once after a pause (SID_RATE); raise it for "
        "clients that work in bursts, lower it to spread their load.",
    )
    max_body_bytes: int = Field(
        default=65536,
        ge=1,
        le=1 << 30,
        description="Largest request body that is read. Our requests are far smaller: raise it "
        "only if a proxy or client adds to them.",
    )
    body_seconds: float = Field(
        default=10.0,
        ge=0.01,
        le=_DAY,
        description="How long a request's body may take to arrive; raise it for clients on slow "
        "networks, lower it to drop stalled ones sooner.",
    )

    max_head_bytes: int = Field(
        default=16384,
        ge=1024,
        le=1 << 20,
        description="Largest request line with headers. Raise it for proxies that add long "
        "cookies or tokens; more is 431.",
    )
    keep_alive_seconds: float = Field(
        default=75.0,
        gt=0,
        le=_DAY,
        description="How long a connection may idle between two requests. Keep it above what the "
        "proxy in front keeps its own open for (60 s for most, 600 s for some clouds'), or some "
        "requests meet a connection that is just being closed.",
    )
    max_connections: int | None = Field(
        default=None,
        ge=1,
        le=_MANY,
        description="Connections that may be open; requests on further ones get 503, probes their "
        "answer. Default: what the limit on open files allows beside 128 for other files, at most "
        "10000. The soft limit is raised towards the hard one where that is needed.",
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _served(cls, precision: Any) -> Any:
        if precision == "int8":
            raise PydanticCustomError(
                "precision",
                "int8 is served no more, as no model's images passed the gate in it: float32, "
                "bfloat16, float16 or any is expected",
            )
        return precision

    @field_validator("keys", "models", "trusted_keys", mode="before")
    @classmethod
    def _not_empty(cls, path: Any) -> Any:
        if path == "":  # which would be the folder that this process runs in
            raise PydanticCustomError("path", "a path is expected; or leave the setting out")
        return path

    @field_validator("devices")
    @classmethod
    def _known_devices(cls, devices: str | None) -> str | None:
        listed = _split(devices)
        if not all(map(_DEVICE.fullmatch, listed)):
            raise PydanticCustomError(
                "devices",
                "cpu, or cards such as cuda:0, are expected, with commas between several",
            )
        if "cpu" in listed and set(listed) != {"cpu"}:
            raise PydanticCustomError(
                "devices",
                "cpu or cards are expected, not both: they draw images that differ in last bits",
            )
        if twice := next((one for one in listed if one != "cpu" and listed.count(one) > 1), None):
            raise PydanticCustomError(
                "devices",
                "each card once is expected, for one engine fills it ({card} is there twice)",
                {"card": twice},
            )
        return devices

    @field_validator("triton")
    @classmethod
    def _addresses(cls, triton: str | None) -> str | None:
        for address in triton.split(",") if triton else ():
            host, _, port = address.strip().rpartition(":")
            if not host or " " in host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise PydanticCustomError(
                    "addresses", "host:port is expected, with commas between several"
                )
        return triton

    @field_validator("public_url")
    @classmethod
    def _public(cls, url: str | None) -> str | None:
        try:
            return None if url is None else check_public_url(url)
        except ValueError:
            raise PydanticCustomError(
                "address", "an address such as https://pictures.example/sid is expected"
            ) from None

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, text: str) -> str:
        try:
            origins(text)
        except ValueError:
            raise PydanticCustomError(
                "origins",
                "origins such as https://app.example (scheme, host and port, no path) are "
                "expected, with commas between several, or *",
            ) from None
        return text

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, trusted: str) -> str:
        try:
            networks(trusted)
        except ValueError:
            raise PydanticCustomError(
                "networks",
                "addresses or networks such as 10.0.0.0/8 are expected, with commas between "
                "several, or *",
            ) from None
        return trusted

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.metrics_port == self.port != 0:
            raise ValueError("SID_METRICS_PORT is a port of its own: another than SID_PORT")
        return self

    @model_validator(mode="after")
    def _rate_needs_keys(self) -> Self:
        if self.rate is not None and self.keys is None:
            raise ValueError("SID_RATE limits each key, so it needs SID_KEYS, the file of keys")
        return self

    @model_validator(mode="after")
    def _one_engine(self) -> Self:
        if self.engine == "triton" and not self.triton:
            raise ValueError("SID_ENGINE=triton needs SID_TRITON, the servers' addresses")
        if self.triton and self.engine not in (None, "auto", "triton"):
            raise ValueError(
                f"SID_TRITON has Triton servers compute, SID_ENGINE={self.engine} this process: "
                "leave one of the two out"
            )
        if self.triton and self.devices is not None:
            raise ValueError(
                "SID_TRITON has Triton servers compute, on the cards that their instance_group "
                "says, SID_DEVICES this process: leave one of the two out"
            )
        if self.precision == "any" and self.engine != "auto":
            raise ValueError("SID_PRECISION=any has the fastest chosen: it needs SID_ENGINE=auto")
        return self

    @property
    def triton_addresses(self) -> list[str]:
        """`triton` as a list; empty: this process computes."""
        return _split(self.triton or None)

    @property
    def device_kind(self) -> str | None:
        """What `devices` are: `cpu` or `cuda`; None: nobody has said."""
        return next((device.partition(":")[0] for device in _split(self.devices)), None)

    @property
    def device_numbers(self) -> list[int]:
        """Of each engine the index of its card, or of its session on the processors."""
        listed = _split(self.devices)
        if self.device_kind == "cuda":
            return [int(device.partition(":")[2]) for device in listed]
        return list(range(max(1, len(listed))))

    def batches_at_a_time(self, engine: str) -> int:
        """`concurrency`, or its default for one engine (as `engine` names it) on this machine."""
        if self.concurrency is not None:
            return self.concurrency
        if engine == "triton":
            return _BATCHES_PER_SERVER * len(self.triton_addresses)
        if engine == "cuda":
            return _BATCHES_PER_GPU
        batches = max(1, available_cpus() // self.threads) + 1
        return -(-batches // len(self.device_numbers))


def _split(text: str | None) -> list[str]:
    """A list with commas between its parts; None: an empty one."""
    return [] if text is None else [part.strip() for part in text.split(",")]
