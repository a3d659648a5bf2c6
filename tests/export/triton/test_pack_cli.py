"""``tocom pack``, as a user calls it."""

from __future__ import annotations

import json

import pytest
import typer
from small_bundles import write_small_bundle
from typer.testing import CliRunner

from tocom.cli import add_verbs
from tocom.errors import OutputError, RequestError


@pytest.fixture
def call():
    app = typer.Typer()
    add_verbs(app, "pack")

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def test_it_writes_the_repository_and_tells_machines_the_models(call, tmp_path):
    bundle = write_small_bundle(tmp_path / "bundle").path
    options = (bundle, "--layout", "triton", "--out", tmp_path / "repository", "--name", "vit", "--degrees", "0,8")
    content = json.loads(call(*options, "--json").stdout)
    assert content["models"] == [
        {"degree": degree, "name": f"vit-r{degree:02d}", "backend": "onnxruntime", "max_batch_size": 4}
        for degree in (0, 8)
    ]
    with pytest.raises(OutputError, match="pass --overwrite"):
        call(*options)
    again = call(*options, "--overwrite")
    assert again.stdout.strip() == content["repository"] == str(tmp_path / "repository")


def test_another_layout_is_refused(call, tmp_path):
    with pytest.raises(RequestError, match=r"'layout' option must be triton. Got 'torchserve' instead"):
        call(tmp_path, "--layout", "torchserve", "--out", tmp_path / "x")
