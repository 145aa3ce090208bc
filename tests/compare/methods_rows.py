"""The rows of methods.py: ways to distil, by the options of 'sid-distill run'."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One way to distil.

    Attributes:
        name: of its folders, and for --rows.
        title: in the table.
        options: of 'sid-distill run'.
        after: the row in whose generator, of the same seed, it starts.
        recipe: what is added to the recipe's name where there is such a recipe: "fashion-sida".
        learns_from_images: whether 'run' takes --data.
        own_teacher: whether it distils the teacher of its own recipe, which is trained first.
    """

    name: str
    title: str
    options: tuple[str, ...]
    after: str | None = None
    recipe: str = ""
    learns_from_images: bool = False
    own_teacher: bool = False

    @property
    def method(self) -> str:
        """By whose losses."""
        return self.options[self.options.index("--method") + 1]


# A row stands below the one in whose generator it starts.
ROWS = (
    Row("sid", "SiD", ("--method", "sid")),
    Row("dmd", "DMD's loss", ("--method", "dmd")),
    Row("sida", "SiDA, from the SiD generator", ("--method", "sida"), "sid", "-sida", True),
    Row("sid-on", "SiD, from the SiD generator", ("--method", "sid"), "sid"),
    Row("sid-2", "SiD, two steps", ("--method", "sid", "--steps", "2")),
    Row("flow", "SiD of a flow teacher", ("--method", "sid"), recipe="-flow", own_teacher=True),
)


def lacking(row: Row, recipe: str, started: Collection[str]) -> str | None:
    """What the product or this command line lacks for a row; None: nothing."""
    from typer.main import get_command

    from distill.cli import app
    from distill.methods.registry import METHODS

    run = get_command(app).commands["run"]  # type: ignore[attr-defined]
    known = {name for option in run.params for name in option.opts}
    if unknown := [word for word in row.options if word.startswith("--") and word not in known]:
        return f"'sid-distill run' has no {unknown[0]}"
    if row.method not in METHODS:
        return f"there is no method {row.method}"
    if row.own_teacher and variant(recipe, row.recipe) == recipe:
        return f"there is no recipe {Path(recipe).stem}{row.recipe}, which trains its teacher"
    if row.after and row.after not in started:
        return f"it starts in the generator of {row.after}, which is not among the rows"
    return None


def variant(recipe: str, suffix: str) -> str:
    """A recipe's variant for a method, such as "fashion-sida"; where there is none, itself."""
    from distill.recipe import RECIPES

    if recipe.endswith(".toml"):
        path = Path(recipe)
        other = path.with_name(f"{path.stem}{suffix}.toml")
        return str(other) if other.is_file() else recipe
    return f"{recipe}{suffix}" if (RECIPES / f"{recipe}{suffix}.toml").is_file() else recipe
