"""Options, backends and devices: what is checked before anything is built."""

from __future__ import annotations

import importlib.util
import os
import threading
from pathlib import Path

import pytest

from tocom.errors import EngineError, OutputError, RequestError
from tocom.export.engines import backend as engine_backend
from tocom.export.engines.backend import BackendFound, Device, find_backend, link_libraries
from tocom.formats.build_options import BuildOptions
from tocom.system.cache import cache_folder
from tocom.system.locks import exclusive


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowering": "fast"}, "'lowering' parameter must be plugin or native. Got 'fast'"),
        ({"batch": (4, 2, 8)}, "'batch' parameter must be min:opt:max"),
        ({"batch": (0, 1, 1)}, "'batch' parameter must be min:opt:max"),
        ({"workspace_mib": 0}, "'workspace_mib' parameter must be at least 1"),
        ({"optimization_level": 6}, "'optimization_level' parameter must be from 0 to 5"),
    ],
)
def test_options_check_themselves(options, message):
    with pytest.raises(RequestError, match=message):
        BuildOptions(**options)


def test_an_unknown_backend():
    with pytest.raises(RequestError, match=r"must be auto, tensorrt or tensorrt-rtx. Got 'openvino' instead"):
        find_backend("openvino")


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(engine_backend, "_metadata_version", lambda *names: None)
    monkeypatch.delenv("TENSORRT_RTX_ROOT", raising=False)


def test_backends_that_are_not_installed(nothing_installed):
    with pytest.raises(EngineError, match="TensorRT is not installed for this Python"):
        find_backend("tensorrt")
    with pytest.raises(EngineError, match=r"install the extra tocom\[rtx\]"):
        find_backend("tensorrt-rtx")
    with pytest.raises(EngineError, match=r"Nothing here builds engines. TensorRT is not .*TensorRT-RTX is not"):
        find_backend("auto")


def rtx_folder(folder: Path, version: str) -> Path:
    folder.mkdir()
    for name in ("libcudart.so.13.4.36", f"libtensorrt_rtx.so.{version}", f"libtensorrt_onnxparser_rtx.so.{version}"):
        (folder / name).touch()
    return folder


def test_bindings_and_libraries_must_be_of_one_version(nothing_installed, monkeypatch, tmp_path):
    monkeypatch.setattr(
        engine_backend, "_metadata_version", lambda *names: "1.7.1.116" if "bindings" in names[0] else None
    )
    with pytest.raises(EngineError, match=r"bindings 1.7.1.116 are here, but not libcudart, libtensorrt_rtx"):
        find_backend("tensorrt-rtx")
    monkeypatch.setenv("TENSORRT_RTX_ROOT", str(rtx_folder(tmp_path / "old", "1.6.0")))
    with pytest.raises(EngineError, match=r"version 1.7.1.116, .*old/libtensorrt_rtx.so.1.6.0 is 1.6.0: both must be"):
        find_backend("tensorrt-rtx")
    monkeypatch.setenv("TENSORRT_RTX_ROOT", str(rtx_folder(tmp_path / "same", "1.7.1")))
    found = find_backend("tensorrt-rtx")
    assert found.module == "tensorrt_rtx_bindings"
    assert found.libraries[0].name == "libcudart.so.13.4.36"


def test_every_name_that_is_looked_up_is_linked(monkeypatch, tmp_path):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    folder = rtx_folder(tmp_path / "rtx", "1.7.1")
    links = tmp_path / "links"
    links.mkdir()
    found = BackendFound("tensorrt-rtx", "1.7.1", "tensorrt_rtx_bindings", tuple(sorted(folder.iterdir())))
    environment = link_libraries(found, links)
    assert environment["LD_LIBRARY_PATH"] == f"{links}{os.pathsep}/before"
    assert {path.name for path in links.iterdir()} >= {
        "libtensorrt_rtx.so",
        "libtensorrt_rtx.so.1",
        "libcudart.so.13",
        "libtensorrt_onnxparser_rtx.so.1",
    }
    assert all(path.resolve().parent == folder for path in links.iterdir())


@pytest.mark.parametrize(
    ("name", "version", "major"),
    [("tensorrt", "10.3.0", 10), ("tensorrt", "11.1.0.5", 11), ("tensorrt-rtx", "1.7", 10)],
)
def test_which_headers_fit(name, version, major):
    assert BackendFound(name, version, "x").op_plugin_major == major


def test_device_slug():
    assert Device("NVIDIA GeForce RTX 4090", (8, 9)).slug == "nvidia-geforce-rtx-4090-sm89"


@pytest.mark.fault("two builds of one folder", outcome="one waits for the other, and says so")
def test_a_lock_is_exclusive_and_waiting_is_told(tmp_path):

    order, waiting = [], threading.Event()

    def second():
        with exclusive(tmp_path / "lock", on_wait=waiting.set):
            order.append("second")

    with exclusive(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot make the lock"), exclusive(tmp_path / "file" / "lock"):
        pass


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TOCOM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TOCOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tocom"
