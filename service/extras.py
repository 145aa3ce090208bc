"""How the extras of pyproject.toml are installed: the package is on no index."""


def how_to_install(extra: str) -> str:
    """What to do where an extra is missing: the end of a sentence."""
    return (
        f"`.venv/bin/pip install -e '.[{extra}]'` in the checkout, or an image built with "
        f"`--build-arg EXTRAS={extra}`"
    )
