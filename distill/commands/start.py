"""Where a run's generator starts: in another generator or in the teacher, at which noise level."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from distill.errors import UserError

if TYPE_CHECKING:
    from distill.networks import Denoiser
    from distill.training.distributed import DistributedContext
    from distill.training_config import DistillationConfig


class Start(NamedTuple):
    """A generator in which another one starts.

    Attributes:
        file: where it lies.
        network: its weights.
        sigma_init: at which noise level it denoises pure noise.
        steps: in how many calls it draws an image.
        described: what it learned, for the header of the run's result.
        licence: of its weights; None: not known.
    """

    file: Path
    network: "Denoiser"
    sigma_init: float
    steps: int
    described: str
    licence: str | None

    def check_steps(self, steps: int) -> None:
        """Refuse a start in other steps than the run's, whose levels it has never seen.

        A generator of one step may start one of several: it knows the first level, and of the
        others what its teacher knew.
        """
        if self.steps not in (1, steps):
            raise UserError(
                f"{self.file} draws in {self.steps} steps, this run in {steps}: say --steps "
                f"{self.steps}, or start from a generator of one step"
            )


def read_start(
    file: Path, teacher: "Denoiser", origin: dict[str, Any], sigma_init: float | None
) -> Start:
    """Read the network in which a generator starts, and check that it fits.

    Args:
        file: it.
        teacher: of the run.
        origin: the header of the teacher's file.
        sigma_init: the noise level that was asked for; None: none was.

    Raises:
        UserError: it is no generator, or not one of this teacher's kind.
    """
    from distill.checkpoints import load_network
    from distill.networks.latent_space import LatentSpace

    network, metadata = load_network(file)
    if metadata["role"] != "generator" or "sigma_init" not in metadata:
        raise UserError(
            f"{file} is no generator with a sigma_init: --generator takes a network of "
            "'sid-distill regress' or of a run"
        )
    kinds = network.config.preconditioning, teacher.config.preconditioning
    if kinds[0] != kinds[1]:
        raise UserError(
            f"the preconditioning of {file} is {kinds[0]}, the teacher's is {kinds[1]}: "
            "--generator takes one that began with this teacher"
        )
    expected = teacher.config.for_drawing()
    shape = network.config.model_copy(update={"dropout": expected.dropout})
    if shape != expected or metadata["classes"] != origin["classes"]:
        raise UserError(
            f"{file} is of another shape or of other classes than the teacher: --generator takes "
            "one that began with this teacher"
        )
    spaces = [
        LatentSpace.model_validate(one["latents"]) if "latents" in one else None
        for one in (metadata, origin)
    ]
    if (spaces[0] and spaces[0].latent_scale) != (spaces[1] and spaces[1].latent_scale):
        raise UserError(
            f"{file} draws latents of another scale than the teacher: --generator takes one that "
            "began with this teacher"
        )
    if sigma_init not in (None, metadata["sigma_init"]):
        raise UserError(
            f"{file} denoises at sigma_init {metadata['sigma_init']:g}, not at {sigma_init:g}: "
            f"leave --sigma-init out"
        )
    described = f"{metadata.get('images_seen')} images of {metadata.get('method', 'sid')}"
    steps, licence = metadata.get("steps", 1), metadata.get("licence")
    return Start(file, network, metadata["sigma_init"], steps, described, licence)


def with_fitting_level(
    config: "DistillationConfig",
    teacher: "Denoiser",
    out: Path,
    origin: dict[str, Any],
    context: "DistributedContext",
) -> "DistillationConfig":
    """Choose sigma_init by the teacher, show it, and note it in `origin`.

    A run that is resumed keeps the one that it began with, which its state holds. Process 0 looks,
    for all.

    Args:
        config: of the run.
        teacher: whose images are looked at.
        out: the run's folder.
        origin: what the run starts from, to which the level is added.
        context: of the run's processes.
    """
    from distill.checkpoints import load_settings
    from distill.recipe import override
    from distill.training.start_level import fitting_sigma_init

    state, level = out / "state.pt", None
    if context.is_main and state.is_file():
        level = load_settings(state).get("sigma_init")
    level = context.broadcast_from_main(level)
    if level is None:
        level, spread = fitting_sigma_init(teacher.to(context.device).eval())
        level = context.broadcast_from_main(level)
        if context.is_main:
            typer.echo(
                f"sigma_init {level:g}: mean colours of the teacher's images of a class spread "
                f"by {spread:.2g}, times {teacher.config.img_resolution} pixels"
            )
    origin["sigma_init"] = level
    return override(config, sigma_init=level)
