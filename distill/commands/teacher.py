"""`sid-distill teacher`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.commands.options import (
    AugmentOption,
    AutoencoderOption,
    BackgroundOption,
    BatchOption,
    Compile,
    CompileOption,
    CudaGraphOption,
    DeviceOption,
    HalflifeOption,
    ImagesOption,
    LearnedDataOption,
    LrOption,
    MicrobatchOption,
    OutFolder,
    PrecisionOption,
    RecipeOption,
    SeedOption,
    ShardOption,
    begun_precision,
    chosen_device,
    named_latents,
    read_recipe,
    read_training_data,
    report,
    with_precision,
)
from distill.errors import UserError
from distill.training.allocator import keep_freed_memory

if TYPE_CHECKING:
    from distill.networks import NetworkLayout
    from distill.networks.latent_space import LatentDecoder


def teacher(
    out: OutFolder,
    recipe: RecipeOption = "fashion",
    data: LearnedDataOption = None,
    autoencoder: AutoencoderOption = None,
    background: BackgroundOption = "white",
    images: ImagesOption = None,
    batch: BatchOption = None,
    microbatch: MicrobatchOption = None,
    precision: PrecisionOption = None,
    augment: AugmentOption = None,
    lr: LrOption = None,
    ema_halflife: HalflifeOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    compile_networks: CompileOption = Compile.auto,
    shard: ShardOption = False,
    no_cuda_graph: CudaGraphOption = False,
) -> None:
    """Train a diffusion teacher on images, or on latents.

    Channels and classes are those of the data; images of your own are scaled to the recipe's
    resolution. A recipe that names an autoencoder is for latents, which 'sid-distill latents'
    makes. The result is OUT/network.safetensors.
    """
    keep_freed_memory()
    from distill.data.augment import AUGMENT_DIM
    from distill.methods.teacher import TeacherTraining
    from distill.recipe import override
    from distill.training.distributed import join_process_group
    from distill.training.loop import train

    chosen, _ = read_recipe(recipe)
    if chosen.teacher is None:
        raise UserError(
            f"the recipe {recipe} distils a released teacher and does not train one: import that, "
            "or add a [teacher] section to a copy of the recipe"
        )
    config = override(
        chosen.teacher,
        total_images=images,
        batch=batch,
        microbatch=microbatch,
        precision=precision,
        augment=augment,
        lr=lr,
        ema_halflife=ema_halflife,
        seed=seed,
    )
    computes_on = chosen_device(device)
    size = chosen.network.img_resolution
    named_autoencoder = autoencoder or (Path(chosen.autoencoder) if chosen.autoencoder else None)
    decoder = None
    if named_autoencoder is not None:
        if config.augment:
            raise UserError(
                "augment bends images, and this network learns latents: say --augment 0"
            )
        decoder = _decoder(named_autoencoder, named_latents(data), chosen.network)
    dataset = read_training_data(data, size, background, None if decoder is None else decoder.space)
    channels, _, width = dataset.shape
    if width != size:
        raise UserError(f"the images are {width} pixels wide, the recipe asks for {size}")
    network = override(
        chosen.network,
        img_channels=channels,
        label_dim=len(dataset.classes),
        augment_dim=AUGMENT_DIM if config.augment else 0,
    )
    metadata: dict[str, Any] = {
        "role": "teacher",
        "recipe": recipe,
        "data": f"{dataset.name}, {len(dataset)} images",
        "classes": list(dataset.classes),
    }
    # What 'publish' says of the network and of its students, unless it is told something else.
    if licence := chosen.licence_for(dataset.name):
        metadata["licence"] = licence
    if description := chosen.description_for(dataset.name):
        metadata["description"] = description
    if decoder is not None:
        metadata["latents"] = decoder.space.model_dump(exclude_none=True)
    named = precision is not None or "precision" in chosen.teacher.model_fields_set
    with join_process_group(computes_on, shard, not no_cuda_graph) as context:
        config = with_precision(config, named, context, lambda: begun_precision(out))
        metadata["precision"] = config.precision
        training = TeacherTraining(network, config, dataset, context, compile_networks.value)
        seen = train(training, out, metadata, decoder=decoder)
        report(seen, config, out, context)


def _decoder(autoencoder: Path, data: Path, network: "NetworkLayout") -> "LatentDecoder":
    """The autoencoder's decoder, for latents scaled as these ask for; refuse other latents."""
    from distill.autoencoders import open_decoder
    from distill.data.latents import read_record

    space = read_record(data).measured_space(autoencoder)
    return open_decoder(autoencoder, space, network, f"the latents in {data}")[0]
