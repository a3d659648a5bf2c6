"""``tocom build`` and ``tocom plugins``, as a user calls them."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from tocom.cli import build, plugins
from tocom.errors import EngineError, RequestError


@pytest.fixture
def call():
    app = typer.Typer()
    build.register(app)
    plugins.register(app)

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.mark.usefixtures("rtx", "no_gpu")
def test_build_prints_the_sidecars(call, bundle, op_plugin):
    result = call("build", bundle.path, "--backend", "tensorrt-rtx", "--op-plugin", op_plugin.path, "--json")
    content = json.loads(result.stdout)
    assert result.exit_code == 0
    assert content["built"] == [0, 2, 4]
    assert [record["degree"] for record in content["engines"]] == [0, 2, 4]
    result = call("build", bundle.path, "--backend", "tensorrt-rtx", "--op-plugin", op_plugin.path, "--degrees", "0,2")
    assert result.stdout.strip().endswith("-portable")


def test_build_tells_what_is_wrong(call, bundle):
    with pytest.raises(RequestError, match="'backend' parameter"):
        call("build", bundle.path, "--backend", "coral")
    with pytest.raises(RequestError, match="'batch'"):
        call("build", bundle.path, "--batch", "4:2:8")


def test_plugins_build_and_inspect(call, op_plugin, op_plugin_cache, monkeypatch):
    monkeypatch.setenv("TOCOM_CACHE", str(op_plugin_cache))
    built = json.loads(call("plugins", "build", "--arch", op_plugin.architectures[0], "--json").stdout)
    assert built["path"] == str(op_plugin.path)
    assert built["architectures"] == list(op_plugin.architectures)
    inspected = json.loads(call("plugins", "inspect", op_plugin.path, "--json").stdout)
    assert {**inspected, "build_seconds": 0} == {**built, "build_seconds": 0}


def test_plugins_tell_what_is_wrong(call, tmp_path):
    with pytest.raises(RequestError, match=r"'--arch' option must be numbers .* Got 'orin' instead"):
        call("plugins", "build", "--arch", "orin")
    with pytest.raises(EngineError, match="No usable nvcc found"):
        call("plugins", "build", "--nvcc", tmp_path / "nvcc")
    with pytest.raises(EngineError, match="No TensorRT headers found"):
        call("plugins", "build", "--tensorrt-include", tmp_path)
