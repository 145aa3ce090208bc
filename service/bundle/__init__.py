"""The bundle: the one contract between the half that trains and the half that serves.

Schema, verification and the seed contract. `distill` imports this package and nothing else
of `service`, so it needs no more than numpy, pydantic and Pillow.
"""

from service.bundle.files import add_to_zip, sha256_file, write_atomically
from service.bundle.golden import Golden, GoldenImage, Image
from service.bundle.graphs import (
    BASELINE,
    CPU,
    CUDA,
    FAR,
    FILENAMES,
    PLAN,
    TOLERANCES,
    Graph,
    Imitation,
    Measured,
    Precision,
    Tolerance,
    variant,
)
from service.bundle.inputs import (
    CLASS_LABELS,
    IMAGES,
    LATENTS,
    ClassInput,
    Input,
    InputError,
    LabelInput,
    NoiseInput,
    Value,
    VectorInput,
    noise_and_class,
)
from service.bundle.load import (
    Bundle,
    BundleError,
    describe_signature,
    list_bundles,
    load_bundle,
    load_manifest,
    write_manifest,
    write_signature,
)
from service.bundle.manifest import MANIFEST_NAME, ClassLabelError, Manifest, Quality
from service.bundle.seeds import SEED_CONTRACT, SEED_MAX, SeedError, check_seed, latents
from service.bundle.signature import (
    SIGNATURE_NAME,
    KeyFileError,
    load_private_key,
    load_trusted_keys,
)
from service.bundle.sizes import GPU_PIXELS, PROCESSOR_PIXELS, batch_limit
from service.bundle.triton import CONFIG_NAME, triton_graph
from service.bundle.validation import first_error

__all__ = [
    "BASELINE",
    "CLASS_LABELS",
    "CONFIG_NAME",
    "CPU",
    "CUDA",
    "FAR",
    "FILENAMES",
    "GPU_PIXELS",
    "IMAGES",
    "LATENTS",
    "MANIFEST_NAME",
    "PLAN",
    "PROCESSOR_PIXELS",
    "SEED_CONTRACT",
    "SEED_MAX",
    "SIGNATURE_NAME",
    "TOLERANCES",
    "Bundle",
    "BundleError",
    "ClassInput",
    "ClassLabelError",
    "Golden",
    "GoldenImage",
    "Graph",
    "Image",
    "Imitation",
    "Input",
    "InputError",
    "KeyFileError",
    "LabelInput",
    "Manifest",
    "Measured",
    "NoiseInput",
    "Precision",
    "Quality",
    "SeedError",
    "Tolerance",
    "Value",
    "VectorInput",
    "add_to_zip",
    "batch_limit",
    "check_seed",
    "describe_signature",
    "first_error",
    "latents",
    "list_bundles",
    "load_bundle",
    "load_manifest",
    "load_private_key",
    "load_trusted_keys",
    "noise_and_class",
    "sha256_file",
    "triton_graph",
    "variant",
    "write_atomically",
    "write_manifest",
    "write_signature",
]
