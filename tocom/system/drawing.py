"""Pictures by matplotlib, without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tocom.errors import RequestError
from tocom.system.files import atomic_path

__all__ = ["picture"]


@contextmanager
def picture(path: Path | str, width: float, height: float) -> Iterator[Any]:
    """Give an empty figure, and write it as PNG when the block ends.

    Args:
        path: The file.
        width: In inches.
        height: In inches.

    Raises:
        RequestError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError("A picture needs matplotlib: pip install 'tocom[plots]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png", dpi=130)
