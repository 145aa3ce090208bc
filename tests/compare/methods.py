"""The methods of distillation on one teacher, recipe and budget: trains, measures, tabulates.

    .venv/bin/python -m tests.compare.methods --images 220000 --seeds 0 1 --out runs/methods

Every training and every measurement is a command of sid-distill, in a process of its own. What a
row still lacks (a method or an option that is not there, a recipe) is said in one line, and the
row is left out. The same command goes on where an earlier one was stopped, by Ctrl-C or by
--minutes. Results are in OUT/methods.json and OUT/methods.md, written anew after each row.
"""

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.compare.methods_commands import Commands, StoppedError
from tests.compare.methods_rows import ROWS, Row, lacking, variant
from tests.compare.methods_table import Result, write

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Train and measure what the command line asks for."""
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    commands = Commands(given.minutes)
    chosen, left_out = choose(given)
    for name, why in left_out.items():
        commands.say(f"left out: {name}: {why}")
    try:
        reference = given.reference or make_reference(given, commands)
    except StoppedError as error:
        sys.exit(f"no reference: {error}")
    futures: list[Future[Result]] = []
    pool = ThreadPoolExecutor(given.parallel)
    try:
        futures += submit(pool, chosen, given, commands, reference)
        for _ in as_completed(futures):
            write_all(given, futures, left_out)
    except KeyboardInterrupt:  # the trainings were sent it too, and keep their states
        commands.deadline = 0.0
    pool.shutdown(cancel_futures=True)
    results = write_all(given, futures, left_out)
    print((given.out / "methods.md").read_text(), end="")
    sys.exit(len(results) < len(futures) or any(one.measured is None for one in results))


def submit(
    pool: ThreadPoolExecutor,
    rows: Sequence[Row],
    given: argparse.Namespace,
    commands: Commands,
    reference: Path,
) -> list[Future[Result]]:
    """Begin with all that is to be done; return it in the order of the table.

    No row is begun before the one for which it waits. The teachers are measured last, for with all
    their evaluations that takes as long as a training.
    """
    shared = (given, commands, reference)
    own_teacher = any(row.own_teacher for row in rows)
    taught = pool.submit(train_flow_teacher, given, commands) if own_teacher else None
    futures: dict[tuple[str, int], Future[Result]] = {}
    for row in rows:
        for seed in given.seeds:
            before = None if given.generator else futures.get((str(row.after), seed))
            work = (row, seed, taught if row.own_teacher else before, *shared)
            futures[row.name, seed] = pool.submit(distil, *work)
    teachers = [pool.submit(the_teacher, *shared)]
    if taught is not None:
        teachers.append(pool.submit(the_flow_teacher, taught, *shared))
    return [*teachers, *futures.values()]


def write_all(
    given: argparse.Namespace, futures: Sequence[Future[Result]], left_out: dict[str, str]
) -> list[Result]:
    """Write, and return, what there is by now."""
    there = [one.result() for one in futures if one.done() and not one.cancelled()]
    settings = {name: str(value) for name, value in vars(given).items()}
    write(given.out, settings, there, left_out)
    return there


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    pretrained = ROOT / "distill" / "pretrained" / "fashion-teacher.safetensors"
    parser.add_argument("--recipe", default="fashion", help="NAME or NAME.toml; variants of it, "
                        "such as NAME-sida and NAME-flow, are found beside it")  # fmt: skip
    parser.add_argument("--teacher", type=Path, default=pretrained)
    parser.add_argument("--images", type=int, required=True,
                        help="from which each generator learns")  # fmt: skip
    parser.add_argument("--cooldown", type=int, help="left out: half of the images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS))
    parser.add_argument("--data", type=Path, help="real images, as 'sid-distill teacher' takes it")
    parser.add_argument("--reference", type=Path, help="left out: made of --data, with features")
    parser.add_argument("--flow-teacher", type=Path, help="left out: trained by its recipe")
    parser.add_argument("--generator", type=Path, help="in which the rows start that start in one; "
                        "left out: what the SiD row of the same seed trained")  # fmt: skip
    parser.add_argument("--teacher-images", type=int, help="that the flow teacher sees")
    parser.add_argument("--run-options", default="", help="more of 'sid-distill run', for all rows")
    parser.add_argument("--first-seed", type=int, default=1_000_000, help="of the measurements")
    parser.add_argument("--evaluate-images", type=int, default=10_000)
    parser.add_argument("--parallel", type=int, default=1, help="processes at once")
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    given = parser.parse_args()
    given.rows = [name.strip() for name in given.rows.split(",")]
    if unknown := set(given.rows) - {row.name for row in ROWS}:
        parser.error(f"no row {', '.join(sorted(unknown))}: choose of "
                     f"{', '.join(row.name for row in ROWS)}")  # fmt: skip
    if given.cooldown is None:
        given.cooldown = given.images // 2
    return given


def choose(given: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """The rows that are wanted and can be trained, and why the others cannot."""
    chosen: list[Row] = []
    left_out: dict[str, str] = {}
    for row in ROWS:
        if row.name not in given.rows:
            continue
        started = {one.name for one in chosen} | ({"sid"} if given.generator else set())
        if why := lacking(row, given.recipe, started):
            left_out[row.name] = why
        else:
            chosen.append(row)
    return chosen, left_out


def make_reference(given: argparse.Namespace, commands: Commands) -> Path:
    """Look at the real images once, and keep their features: recall needs them."""
    from distill.recipe import load_recipe

    recipe, file = load_recipe(given.recipe), given.out / "reference.npz"
    if not file.is_file():
        command = [
            "reference",
            "--features",
            str(recipe.features),
            "--keep-features",
            "--out",
            file,
        ]
        command += ["--resolution", str(recipe.network.img_resolution), *data(given)]
        commands.run(command, given.out / "reference.log")
    return file


def data(given: argparse.Namespace) -> list[str | Path]:
    """The real images, as an option."""
    return [] if given.data is None else ["--data", given.data]


def the_teacher(given: argparse.Namespace, commands: Commands, reference: Path) -> Result:
    """Measure the teacher, in a copy: what is measured is written beside the network."""
    folder = given.out / "teacher"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(given.teacher, folder / "network.safetensors")
    result = Result("teacher", "teacher")
    return measured(result, folder, given, commands, reference)


def train_flow_teacher(given: argparse.Namespace, commands: Commands) -> Result:
    """Train the flow teacher, which all seeds share, or take the given one."""
    folder = given.out / "flow-teacher"
    result = Result("flow-teacher", "flow teacher")
    if given.flow_teacher is not None:
        folder.mkdir(exist_ok=True)
        shutil.copyfile(given.flow_teacher, folder / "network.safetensors")
        return result
    command = ["teacher", "--recipe", variant(given.recipe, "-flow"), "--out", folder]
    command += ["--device", given.device, *data(given)]
    if given.teacher_images:
        command += ["--images", str(given.teacher_images)]
    try:
        result.seconds = train(command, folder, commands)
    except StoppedError as error:
        result.why = str(error)
    return result


def the_flow_teacher(
    taught: "Future[Result]", given: argparse.Namespace, commands: Commands, reference: Path
) -> Result:
    """Measure the flow teacher, once it is there."""
    result = taught.result()
    if result.why is not None:
        return result
    return measured(result, given.out / "flow-teacher", given, commands, reference)


def distil(
    row: Row,
    seed: int,
    before: "Future[Result] | None",
    given: argparse.Namespace,
    commands: Commands,
    reference: Path,
) -> Result:
    """Train and measure one row with one seed, once what it starts from is there."""
    folder, result = given.out / f"{row.name}-{seed}", Result(row.name, row.title, seed)
    started = None if before is None else before.result()
    if started is not None and started.why is not None:
        result.why = f"{started.name} is not there: {started.why}"
        return result
    teacher = (
        given.out / "flow-teacher" / "network.safetensors" if row.own_teacher else given.teacher
    )
    recipe = variant(given.recipe, row.recipe)
    resting = resting_images(recipe, row)
    command = ["run", "--recipe", recipe, "--teacher", teacher]
    command += ["--out", folder, "--seed", str(seed), "--device", given.device]
    command += ["--images", str(given.images + resting), "--cooldown", str(given.cooldown)]
    command += ["--features", "none"]  # what is measured along the way would cost all of them time
    result.images, result.resting = [given.images], resting
    if row.after and given.generator:
        command += ["--generator", given.generator]
    elif row.after:
        command += ["--generator", given.out / f"{row.after}-{seed}" / "network.safetensors"]
        result.images *= 2
    command += [*row.options, *(data(given) if row.learns_from_images else [])]
    try:
        result.seconds = train([*command, *shlex.split(given.run_options)], folder, commands)
    except StoppedError as error:
        result.why = str(error)
        return result
    return measured(result, folder, given, commands, reference)


def resting_images(recipe: str, row: Row) -> int:
    """How many images a run counts before its generator learns: they come on top of the others."""
    from distill.methods.registry import method_section
    from distill.recipe import load_recipe

    section = method_section(load_recipe(recipe), recipe, row.method)
    return int(getattr(section, "frozen_images", 0))


def train(words: Sequence[str | Path], folder: Path, commands: Commands) -> float:
    """Train to the end, unless that is done; return the seconds that it took in all."""
    folder.mkdir(exist_ok=True)
    record, command = folder / "trained.json", [str(word) for word in words]
    known = json.loads(record.read_text()) if record.is_file() else {"seconds": 0.0, "ended": None}
    if known["ended"] == command:
        return float(known["seconds"])
    began = time.monotonic()
    try:
        commands.run(words, folder / "train.log")
        known["ended"] = command
    finally:
        known["seconds"] += time.monotonic() - began
        record.write_text(json.dumps(known) + "\n")
    return float(known["seconds"])


def measured(
    result: Result, folder: Path, given: argparse.Namespace, commands: Commands, reference: Path
) -> Result:
    """Add what 'evaluate' measures of the network in a folder, unless it is known."""
    from service.bundle import sha256_file

    network, kept = folder / "network.safetensors", folder / "measured.json"
    command = ["evaluate", network, "--reference", reference, "--metrics", "pr"]
    command += ["--images", str(given.evaluate_images), "--first-seed", str(given.first_seed)]
    command += ["--device", given.device, *(["--steps", "18"] if result.seed is None else [])]
    asked = [*map(str, command), sha256_file(network)]
    known = json.loads(kept.read_text()) if kept.is_file() else {"asked": None}
    if known["asked"] != asked:
        try:
            found = json.loads(commands.run(command, folder / "evaluate.log"))
        except StoppedError as error:
            result.why = str(error)
            return result
        known = {"asked": asked, "measured": found}
        kept.write_text(json.dumps(known) + "\n")
    result.measured = known["measured"]
    return result


if __name__ == "__main__":
    main()
