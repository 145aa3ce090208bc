"""The OpenAPI document, held against the real server by schemathesis."""

import subprocess
import sys

import pytest

from tests.service.test_process import serving

pytestmark = pytest.mark.slow


def test_the_server_does_what_its_document_says_whatever_is_sent(models, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--checks=all", "--max-examples=50"]
    # A class or a model that is not there is refused although the document, which is the same
    # for every set of models, allows it.
    command += ["--exclude-checks=positive_data_acceptance", "--generation-deterministic"]
    with serving(models, SID_LOG_LEVEL="warning", log=log) as (_, url):
        done = subprocess.run(
            [*command, f"{url}/openapi.json"],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout
    assert "12 selected / 12 total" in done.stdout, "every route is in the document"
    assert log.read_text() == "", "an error was logged"
