"""Commands of sid-distill, run in this process."""

from typing import Any

from typer.testing import CliRunner

from distill.cli import app
from distill.errors import UserError


def sid_distill(*arguments: Any, exit_code: int = 0) -> str:
    """Run a command; return what it prints, or raise the UserError with which it ends."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == exit_code, result.exception or result.output
    return result.output
