"""The sections of the kit, most valuable first: limits, what they need, and their tables.

The limits add up to less than eight minutes. This module imports none of what it describes: the
process that starts the sections must survive whatever becomes of them.
"""

from tests.gpu.section import Row, Section

# Where and when the figures of `Row.before` were measured; which cards the aims are for.
BEFORE = "NVIDIA H200, 2026-11-27, main at 8436a27"
AIMS_FOR = ("H100", "H200")

_NETWORKS = ("torch", "numpy", "pydantic", "safetensors", "PIL", "tqdm")
_GATEWAY = (
    "fastapi", "fastapi_swagger", "httptools", "httpx", "numpy", "orjson", "PIL",
    "prometheus_client", "pydantic", "pydantic_settings", "rich", "structlog", "typer", "uvicorn",
    "uvloop",
)  # fmt: skip


def _outputs(network: str) -> tuple[Row, ...]:
    """How far a network's output may be from the reference numbers: its largest difference.

    float32 with TF32 strays by 5e-5 to 7e-5, so its bound tells whether TF32 is really off.
    """
    before = {"ddpmpp": ("7.1e-5 with TF32", "2.9e-3", "3.8e-4"), "ncsnpp": ("5.2e-5 with TF32",)}
    bounds = {"float32": 3e-5, "bfloat16": 1e-2, "float16": 1.5e-3}
    rows = []
    for number, (precision, bound) in enumerate(bounds.items()):
        known = before.get(network, ())
        rows.append(
            Row(
                f"{network} {precision}",
                f"{network} against the reference numbers, {precision}: largest difference",
                unit="",
                before=known[number] if number < len(known) else "",
                at_most=bound,
                must=True,
            )
        )
    return tuple(rows)


def _losses(precision: str) -> Row:
    return Row(
        f"losses {precision}",
        f"forty steps of SiD, {precision} against float32: relative difference of losses and gap",
        unit="",
        before="2 to 3 %",
        at_most=0.06,
        must=True,
    )


def _batches(
    key: str, title: str, before: tuple[str, ...], aims: dict[int, float] | None = None
) -> tuple[Row, ...]:
    sizes = (1, 8, 32 if "fashion" in key else 64, 256)
    return tuple(
        Row(f"{key} {size}", f"{title}, batch {size}", before=one, at_least=(aims or {}).get(size))
        for size, one in zip(sizes, before, strict=True)
    )


_TRAINED = (
    Row("cifar", "CIFAR network, SiD, batch 256 in micro-batches of 128, bfloat16",
        before="246 (in one of 256)", at_least=650),
    Row("cifar memory", "its peak memory", "GiB", "79", at_most=40),
    Row("cifar share", "its share of the measured bfloat16 ceiling", "%", "16"),
    Row("fashion", "fashion network, SiD, batch 128, bfloat16", before="761", at_least=8000),
    Row("64x64", "64x64 network of 3.1 M parameters, SiD, batch 256, bfloat16",
        before="830", at_least=3500),
)  # fmt: skip

SECTIONS = (
    Section(
        "tests.gpu.ceilings",
        "Ceilings of the card",
        20,
        ("torch",),
        (
            Row("bfloat16", "matrix product, bfloat16", "TFLOP/s", "728"),
            Row("tf32", "matrix product, TF32", "TFLOP/s", "387"),
            Row("float32", "matrix product, float32", "TFLOP/s", "50.2"),
            Row("copy", "copy within the card's memory, read and written", "TB/s", "4.13"),
        ),
    ),
    Section(
        "tests.gpu.correctness",
        "Right",
        60,
        _NETWORKS,
        (
            *_outputs("ddpmpp"),
            *_outputs("ncsnpp"),
            *_outputs("adm"),
            Row(
                "seeds",
                "`service.bundle.latents` against torch.randn on the card: largest difference",
                unit="",
                before="1.2e-5",
                at_most=5e-5,
                must=True,
            ),
            _losses("bfloat16"),
            _losses("float16"),
        ),
    ),
    Section(
        "tests.gpu.training",
        "Training, eager (--compile off)",
        105,
        _NETWORKS,
        (
            *_TRAINED,
            Row("replays", "phases of a step of SiD that are replayed as CUDA graphs", "",
                "none was", at_least=2, must=True),
            Row("waits", "places at which a step of SiD waits for the card", "", "not measured",
                at_most=0, must=True),
            Row("teacher replays", "phases of a teacher's step that are replayed", "",
                "none was", at_least=1, must=True),
            Row("teacher waits", "places at which a teacher's step waits for the card", "",
                "not measured", at_most=0, must=True),
            Row("float32 ratio", "CIFAR network, SiD, float32: speed to the plain transcription's",
                "", "0.92", at_least=1.0),
            Row("teacher", "64x64 network, its teacher, batch 512, bfloat16", before="3,470"),
            Row("fashion float32", "fashion network, SiD, batch 128, float32", before="784"),
            Row("cifar whole", "CIFAR network, SiD, batch 256 in one micro-batch, bfloat16",
                before="246"),
        ),
    ),
    Section(
        "tests.gpu.compiled",
        "Training, the fastest form (--compile auto)",
        135,
        _NETWORKS,
        _TRAINED,
    ),
    Section(
        "tests.gpu.inference",
        "One-step inference",
        85,
        (*_NETWORKS, "pydantic_settings", "structlog"),
        (
            *_batches("fashion", "models/fashion, float16, CUDA engine",
                      ("197", "1,431", "3,959", "15,618"), {32: 20_000}),
            Row("cifar latency", "CIFAR network, float16, CUDA engine, batch 1: p50", "ms", "15.5",
                at_most=3),
            *_batches("cifar", "CIFAR network, float16, CUDA engine",
                      ("65", "781", "2,485", "3,048"), {64: 6000, 256: 8000}),
            *_batches("eager", "CIFAR network, torch eager, bfloat16",
                      ("42", "312", "2,317", "3,337")),
        ),
    ),
    Section(
        "tests.gpu.gateway",
        "The gateway",
        40,
        _GATEWAY,
        (
            Row("float16", "models/fashion at 64 connections, float16", before="not measured"),
            Row("float16 busy", "share of that time in which the card computed", "%",
                "not measured"),
            Row("float32", "models/fashion at 64 connections, float32", before="1,114"),
            Row("float32 busy", "share of that time in which the card computed", "%",
                "not measured"),
        ),
    ),
    Section(
        "tests.gpu.marked_tests",
        "Tests marked `gpu`",
        34,
        ("pytest", "hypothesis"),
        (Row("failed", "tests that failed", "", "none was marked", at_most=0, must=True),),
    ),
)  # fmt: skip
