"""Answers of ``tocom run`` as rows: printed or written as they come, counted for the summary."""

from __future__ import annotations

import csv
import json
from array import array
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tocom.errors import OutputError, RequestError

if TYPE_CHECKING:
    from tocom.runtime import Result

__all__ = ["AnswerFile", "Row", "Summary", "row_of", "text_of"]

_COLUMNS = ("source", "image", "class", "label", "probability", "degree", "latency_ms", "met_budget", "top", "error")

Row = dict[str, Any]


def row_of(source: str, name: str, result: Result, topk: int) -> Row:
    """Return an answer as plain JSON content."""
    top: list[dict[str, Any]] = []
    if "logits" in result.outputs:
        top = [
            {"class": answer.index, "label": answer.label, "probability": round(answer.probability, 4)}
            for answer in result.top(topk)
        ]
    return {
        "source": source,
        "image": name,
        **(top[0] if top else {"class": None, "label": None, "probability": None}),
        **({"top": top} if topk > 1 else {}),
        "degree": result.degree,
        "latency_ms": round(result.latency_ms, 3),
        "met_budget": result.met_budget,
    }


def text_of(row: Row) -> str:
    """Return a row as a line of text."""
    if "error" in row:
        return f"{row['image']}: {row['error']}"
    names = [
        f"{answer['label'] or 'class ' + str(answer['class'])} {answer['probability']:.3f}"
        for answer in (row.get("top") or ([row] if row["class"] is not None else []))
    ]
    missed = "" if row["met_budget"] else "  over budget"
    answer = ", ".join(names) or "features"
    return f"{row['image']}: {answer}  degree {row['degree']}  {row['latency_ms']:.2f} ms{missed}"


class AnswerFile:
    """A file that takes rows as they come, as CSV or as JSON lines by its suffix: whoever reads it sees the last one.

    Raises:
        RequestError: The suffix is neither.
        OutputError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in (".csv", ".jsonl"):
            raise RequestError(f"The '--out' option must name a .csv or a .jsonl file. Got {path} instead.")
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A file's name may not be UTF-8.
            self._file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        except OSError as error:
            raise self._unwritable(error) from error
        self._csv = csv.DictWriter(self._file, _COLUMNS) if path.suffix == ".csv" else None
        if self._csv is not None:
            self._csv.writeheader()

    def write(self, row: Row) -> None:
        """Write one row, through to the system."""
        try:
            if self._csv is None:
                self._file.write(json.dumps(row, allow_nan=False) + "\n")
            else:
                self._csv.writerow({**row, "top": json.dumps(row["top"]) if "top" in row else None})
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close it.

        Raises:
            OutputError: What was written last cannot be.
        """
        try:
            self._file.close()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"Cannot write {self._path}: {error.strerror or error}. Choose another path.")


class Summary:
    """Counts of all rows so far; it keeps a number per row, so that a camera may run for days."""

    def __init__(self, budget_ms: float | None) -> None:
        self._budget_ms = budget_ms
        self._latencies = array("d")
        self._degrees: Counter[int] = Counter()
        self._met = 0
        self.failed = 0
        self.first = ""

    def add(self, row: Row) -> None:
        """Count a row."""
        if "error" in row:
            self.first = self.first or row["error"]
            self.failed += 1
            return
        self._latencies.append(row["latency_ms"])
        self._degrees[row["degree"]] += 1
        self._met += row["met_budget"]

    @property
    def answered(self) -> int:
        """Images that have an answer."""
        return len(self._latencies)

    def content(self) -> Row:
        """Return the figures as plain JSON content."""
        import numpy as np

        count = self.answered
        p50, p95 = (round(float(q), 3) for q in np.quantile(self._latencies, (0.5, 0.95))) if count else (None, None)
        return {
            "images": count,
            "failed": self.failed,
            "budget_ms": self._budget_ms,
            "degrees": {str(degree): number for degree, number in sorted(self._degrees.items())},
            "p50_ms": p50,
            "p95_ms": p95,
            "met_budget": round(self._met / count, 4) if count else None,
        }
