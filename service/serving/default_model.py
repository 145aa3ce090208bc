"""Which model a request gets that names none: as the operator states it, else the one it was."""

from collections.abc import Iterable
from pathlib import Path

from service.bundle import BundleError
from service.bundle.text import TextError, decode_text
from service.settings import Settings

DEFAULT_NAME = "DEFAULT"
"""The file in the folder of models that names the default; no bundle can have this name."""


class DefaultModelError(Exception):
    """The default that is stated is not served; the message says where it is stated."""


def stated_default(settings: Settings, names: Iterable[str]) -> str | None:
    """The default that SID_DEFAULT_MODEL or the file DEFAULT beside the models states.

    The setting comes first: a file goes where its folder goes, into an image or a volume that
    cannot be written, and the setting is for those who want another there.

    Args:
        settings: which folder of models, and the setting.
        names: the models that are there.

    Returns:
        Its name, one of `names`; None where neither says anything.

    Raises:
        DefaultModelError: what is stated is not among the models.
        BundleError: the file cannot be read.
    """
    names = sorted(names)
    path = settings.models / DEFAULT_NAME
    source, name = "SID_DEFAULT_MODEL", settings.default_model
    if name is None and path.is_file():
        source, name = str(path), _read(path)
    if name is not None and name not in names:
        raise DefaultModelError(
            f"{source} names {name!r} as the default, and there is no such model, but "
            f"{', '.join(names)}"
        )
    return name


def choose_default(
    names: Iterable[str], stated: str | None, before: str | None = None
) -> str | None:
    """The default of the models that are served.

    Args:
        names: the models.
        stated: as `stated_default` returns it.
        before: the default until now, of a server that loads its models anew.

    Returns:
        What is stated; else the default of before, as long as it is served, so that a model that
        is published beside it changes nothing for clients; else the only model; else None.
    """
    names = list(names)
    if stated is not None:
        return stated
    if before in names:
        return before
    return names[0] if len(names) == 1 else None


def _read(path: Path) -> str:
    try:
        return decode_text(path.read_bytes()).strip()
    except (OSError, TextError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{path}: {reason}") from error
