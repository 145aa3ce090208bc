"""`sid-distill teacher`."""

from typing import Any

from distill.commands.options import (
    AugmentOption,
    BackgroundOption,
    BatchOption,
    Compile,
    CompileOption,
    CudaGraphOption,
    DataOption,
    DeviceOption,
    HalflifeOption,
    ImagesOption,
    LrOption,
    MicrobatchOption,
    OutFolder,
    PrecisionOption,
    RecipeOption,
    SeedOption,
    ShardOption,
    begun_precision,
    chosen_device,
    read_images,
    read_recipe,
    report,
    with_precision,
)
from distill.errors import UserError
from distill.training.allocator import keep_freed_memory


def teacher(
    out: OutFolder,
    recipe: RecipeOption = "fashion",
    data: DataOption = None,
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
    """Train a diffusion teacher on images.

    Channels and classes are those of the data; images of your own are scaled to the recipe's
    resolution. The result is OUT/network.safetensors.
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
    dataset = read_images(data, size, background)
    if dataset.images.shape[-1] != size:
        raise UserError(
            f"the images are {dataset.images.shape[-1]} pixels wide, the recipe asks for {size}"
        )
    network = override(
        chosen.network,
        img_channels=dataset.images.shape[1],
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
    named = precision is not None or "precision" in chosen.teacher.model_fields_set
    with join_process_group(computes_on, shard, not no_cuda_graph) as context:
        config = with_precision(config, named, context, lambda: begun_precision(out))
        metadata["precision"] = config.precision
        training = TeacherTraining(network, config, dataset, context, compile_networks.value)
        seen = train(training, out, metadata)
        report(seen, config, out, context)
