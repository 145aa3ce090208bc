"""The OpenAPI document, held against the real server by schemathesis."""

import subprocess
import sys

import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.test_process import serving


def test_the_reference_groups_every_operation_and_says_what_each_group_is_for():
    document = create_app(Settings()).openapi()
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert len(operations) == 12
    used = {tag for one in operations for tag in one["tags"]}
    assert all(len(one["tags"]) == 1 for one in operations)
    described = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert list(described) == ["images", "models", "client for Python", "OpenAI's API", "operation"]
    assert set(described) == used, "Swagger UI shows others last, and unexplained"
    assert all(text.endswith(".") and text.count(".") == 1 for text in described.values())


@pytest.mark.slow
def test_the_server_does_what_its_document_says_whatever_is_sent(models, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--checks=all", "--max-examples=25"]
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
