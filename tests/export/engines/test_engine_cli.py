"""``tocom build`` and ``tocom plugins``, as a user calls them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from tocom.cli import add_verbs
from tocom.errors import EngineError, RequestError


@pytest.fixture
def call():
    app = typer.Typer()
    add_verbs(app, "build", "plugins")

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
    with pytest.raises(RequestError, match=r"'timeout-s' option must be .*, or none\. Got '-1'"):
        call("build", bundle.path, "--timeout-s", "-1")


@pytest.mark.usefixtures("rtx", "no_gpu")
@pytest.mark.parametrize("limit", ["0.01", "none"])
def test_a_limit_of_time(call, bundle, limit):
    arguments = ("build", bundle.path, "--backend", "tensorrt-rtx", "--degrees", "0", "--timeout-s", limit)
    if limit == "none":
        assert call(*arguments).exit_code == 0
    else:
        with pytest.raises(EngineError, match=r"took longer than 0\.01 s while starting"):
            call(*arguments)


# Whatever runs the tests may ignore these signals, and a child inherits that.
MAIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from tocom.cli import main
main()
"""


@pytest.mark.usefixtures("rtx", "no_gpu")
@pytest.mark.parametrize(
    ("number", "moment", "told"),
    [
        (signal.SIGINT, "tmp/.tocom-build.*/stderr.txt", "interrupted"),
        (signal.SIGHUP, "tmp/.tocom-build.*/stderr.txt", "hung up"),
        (signal.SIGTERM, "bundle/engines/*/degree-00.json", "terminated"),
    ],
)
@pytest.mark.fault(
    "Ctrl-C, SIGTERM or SIGHUP during a build",
    outcome="one line, the signal's exit code; nothing half-written is left, in the folder for temporary files neither",
)
def test_a_build_that_is_told_to_end(bundle, tmp_path, number, moment, told):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-c", MAIN, "build", str(bundle.path), "--backend", "tensorrt-rtx"]
    child = subprocess.Popen(
        [*command, "--lowering", "native"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob(moment)):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert said.splitlines()[-1] == f"{told}; nothing half-written was left behind"
    assert "Traceback" not in said
    assert list(temporary.iterdir()) == []
    assert [path.name for path in bundle.path.glob("engines/*/.*")] == [".lock"]


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
