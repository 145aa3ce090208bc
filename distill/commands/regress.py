"""`sid-distill regress`."""

from typing import Annotated

from distill.commands.options import (
    BatchOption,
    Compile,
    CompileOption,
    CudaGraphOption,
    DeviceOption,
    HalflifeOption,
    ImagesOption,
    LrOption,
    MicrobatchOption,
    OutFolder,
    PrecisionOption,
    RecipeOption,
    SeedOption,
    TeacherOption,
    begun_precision,
    chosen_device,
    default_from_recipe,
    read_recipe,
    read_teacher,
    report,
    with_precision,
)
from distill.errors import UserError
from distill.training.allocator import keep_freed_memory


def regress(
    out: OutFolder,
    teacher: TeacherOption,
    recipe: RecipeOption = "avatars",
    pairs: Annotated[
        int | None, default_from_recipe("How many images the teacher draws to learn from.")
    ] = None,
    steps: Annotated[
        int | None, default_from_recipe("Heun's steps an image takes: 2 STEPS - 1 evaluations.")
    ] = None,
    sigma_init: Annotated[
        float | None,
        default_from_recipe("Noise level at which they begin, and the generator denoises."),
    ] = None,
    images: ImagesOption = None,
    batch: BatchOption = None,
    microbatch: MicrobatchOption = None,
    precision: PrecisionOption = None,
    lr: LrOption = None,
    ema_halflife: HalflifeOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    compile_networks: CompileOption = Compile.auto,
    no_cuda_graph: CudaGraphOption = False,
) -> None:
    """Let one step learn what a teacher makes of each noise in many: a start for 'run --generator'.

    The teacher draws its images into OUT/pairs first, which takes most of the time. The result
    is OUT/network.safetensors: blurred, but of the teacher's whole variety.
    """
    keep_freed_memory()
    from distill.methods.pairs import draw_pairs, drawn_precision
    from distill.methods.regression import RegressionTraining
    from distill.recipe import override
    from distill.training.distributed import join_process_group
    from distill.training.loop import train

    chosen, _ = read_recipe(recipe)
    if chosen.regression is None:
        raise UserError(
            f"the recipe {recipe} has no [regression] section: its generator starts from the "
            "teacher's weights; add one to a copy of the recipe"
        )
    network, origin = read_teacher(teacher)
    if "latents" in origin:
        raise UserError(
            f"{teacher} draws latents, and pairs are kept as pixels: let 'sid-distill run' start "
            "from the teacher"
        )
    config = override(
        chosen.regression,
        pairs=pairs,
        steps=steps,
        sigma_init=sigma_init,
        total_images=images,
        batch=batch,
        microbatch=microbatch,
        precision=precision,
        lr=lr,
        ema_halflife=ema_halflife,
        seed=seed,
    )
    metadata = origin | {
        "role": "generator",
        "recipe": recipe,
        "method": "regression",
        "pairs": config.pairs,
        "sigma_init": config.sigma_init,
        "teacher_images_seen": origin.get("images_seen"),
    }
    folder = out / "pairs"
    named = precision is not None or "precision" in chosen.regression.model_fields_set
    with join_process_group(chosen_device(device), cuda_graph=not no_cuda_graph) as context:
        config = with_precision(
            config, named, context, lambda: begun_precision(out) or drawn_precision(folder)
        )
        metadata["precision"] = config.precision
        drawn = draw_pairs(network.to(context.device), config, folder, context)
        training = RegressionTraining(network, drawn, config, context, compile_networks.value)
        seen = train(training, out, metadata)
        report(seen, config, out, context)
