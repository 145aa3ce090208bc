"""`sid-distill teacher`."""

from distill.commands.options import (
    BatchOption,
    DataOption,
    DeviceOption,
    HalflifeOption,
    ImagesOption,
    LrOption,
    OutFolder,
    RecipeOption,
    SeedOption,
    chosen_device,
    report,
)
from distill.errors import UserError


def teacher(
    out: OutFolder,
    recipe: RecipeOption = "fashion",
    data: DataOption = None,
    images: ImagesOption = None,
    batch: BatchOption = None,
    lr: LrOption = None,
    ema_halflife: HalflifeOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a diffusion teacher on images.

    Channels and classes are those of the data; images of your own are scaled to the recipe's
    resolution. The result is OUT/network.safetensors.
    """
    from distill.data import load_dataset
    from distill.recipe import load_recipe, override
    from distill.teacher import TeacherTraining
    from distill.training import train

    chosen = load_recipe(recipe)
    target = chosen_device(device)
    size = chosen.network.img_resolution
    dataset = load_dataset(data, resolution=size)
    if dataset.images.shape[-1] != size:
        raise UserError(
            f"the images are {dataset.images.shape[-1]} pixels wide, the recipe asks for {size}"
        )
    network = override(
        chosen.network,
        img_channels=dataset.images.shape[1],
        label_dim=len(dataset.classes),
    )
    config = override(
        chosen.teacher,
        total_images=images,
        batch=batch,
        lr=lr,
        ema_halflife=ema_halflife,
        seed=seed,
    )
    facts = {
        "role": "teacher",
        "recipe": recipe,
        "data": f"{dataset.name}, {len(dataset)} images",
        "classes": list(dataset.classes),
    }
    report(train(TeacherTraining(network, config, dataset, target), out, facts), config, out)
