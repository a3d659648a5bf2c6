"""What every test has."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

# A command that a shell started in the background ignores Ctrl-C, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_trace_per_model() -> Iterator[None]:
    """Let the exports of a run share their graphs: most are of the same few models, and tracing is what takes time.

    Of the session, so that the exports of shared fixtures are among them.
    """
    pipeline = sys.modules.get("tocom.export.pipeline")  # loaded by now where a test file exports
    with pytest.MonkeyPatch.context() as patch:
        if pipeline is not None:
            shared = pipeline.Templates()
            patch.setattr(pipeline, "Templates", lambda: shared)
        yield
