"""`sid-distill run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.commands.options import (
    BatchOption,
    DeviceOption,
    HalflifeOption,
    ImagesOption,
    LrOption,
    OutFolder,
    RecipeOption,
    SeedOption,
    chosen_device,
    recipes_own,
    report,
)
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.networks import Denoiser


def run(
    out: OutFolder,
    teacher: Annotated[Path, typer.Option(help="The teacher: a network.safetensors.")],
    recipe: RecipeOption = "fashion",
    features: Annotated[
        str | None,
        typer.Option(
            help="Feature network (a shipped name or a .safetensors file) over which the distance "
            "is measured along the way; 'none' measures nothing. Left out: the recipe's.",
            show_default=False,
        ),
    ] = None,
    images: ImagesOption = None,
    batch: BatchOption = None,
    lr: LrOption = None,
    fake_lr: Annotated[
        float | None, recipes_own("Learning rate of the fake-score network.")
    ] = None,
    cooldown: Annotated[
        int | None, recipes_own("The last images, over which the learning rates fall to 0.")
    ] = None,
    alpha: Annotated[
        float | None,
        recipes_own("Weight of the squared score gap: 1.0 is safe, 1.2 the paper's on CIFAR-10."),
    ] = None,
    t_max: Annotated[
        float | None, recipes_own("End of the noise levels compared, of 1000 (800: sigma 24.4).")
    ] = None,
    weighting: Annotated[
        str | None, recipes_own("'sid' divides a sample's loss by |x - teacher|; or 'none'.")
    ] = None,
    sigma_init: Annotated[
        float | None, recipes_own("Noise level at which the generator denoises pure noise.")
    ] = None,
    ema_halflife: HalflifeOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Distil a teacher into a one-step generator, without data (SiD).

    The result is OUT/network.safetensors; OUT/curve.jsonl holds the distance along the way.
    """
    from distill.checkpoints import load_network
    from distill.evaluation.evaluate import measure, one_step_sampler
    from distill.evaluation.features import load_detector
    from distill.recipe import load_recipe, override
    from distill.sid import SidTraining
    from distill.training import train

    chosen = load_recipe(recipe)
    target = chosen_device(device)
    network, origin = load_network(teacher)
    if origin.get("role") != "teacher":
        raise UserError(f"{teacher} is a {origin.get('role')}: --teacher takes a teacher")
    config = override(
        chosen.sid,
        total_images=images,
        batch=batch,
        lr=lr,
        fake_lr=fake_lr,
        cooldown=cooldown,
        alpha=alpha,
        t_max=t_max,
        weighting=weighting,
        sigma_init=sigma_init,
        ema_halflife=ema_halflife,
        seed=seed,
    )
    numbers = config.model_dump(exclude_none=True, exclude={"betas", "checkpoint_every"})
    facts = (
        origin
        | numbers
        | {
            "role": "generator",
            "recipe": recipe,
            "teacher_images_seen": origin["images_seen"],
        }
    )
    detector = None
    detector_name = features or chosen.features or "none"
    if detector_name != "none":
        detector = load_detector(detector_name)
        detector.check_fits(network, origin["classes"])
        detector.network.to(target)

    def distance(generator: "Denoiser") -> dict[str, float]:
        if detector is None:
            return {}
        return measure(one_step_sampler(generator, config.sigma_init), generator, detector)

    evaluate = None if detector is None else distance
    report(train(SidTraining(network, config, target), out, facts, evaluate), config, out)
