"""What every test has."""

from __future__ import annotations

import signal
import sys

import pytest

_traced = []

# A command that a shell started in the background ignores Ctrl-C, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_trace_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exports of a run share their graphs: most are of the same few models, and tracing is what takes time."""
    pipeline = sys.modules.get("tocom.export.pipeline")
    if pipeline is not None:
        if not _traced:
            _traced.append(pipeline.Templates())
        monkeypatch.setattr(pipeline, "Templates", lambda: _traced[0])
