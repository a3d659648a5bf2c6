"""The report: one HTML file that needs nothing else, and its figures as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

from tocom.calibration.latency.block_times import BlockTimes
from tocom.calibration.suggest import Suggestion
from tocom.errors import CalibrationError
from tocom.formats.bundle import Bundle
from tocom.formats.measurements import Accuracy, Latency
from tocom.formats.profile import Profile
from tocom.system.files import atomic_path

__all__ = ["REPORT_FOLDER", "write_report"]

REPORT_FOLDER = "report"


def write_report(
    profile: Profile,
    bundle: Bundle,
    out: Path | str | None = None,
    *,
    suggestion: Suggestion | None = None,
    blocks: Sequence[BlockTimes] = (),
    feature_gap: Mapping[int, Mapping[str, float]] | None = None,
) -> Path:
    """Write ``report.html`` and one PNG per figure, and return the HTML's path.

    Args:
        profile: What was measured.
        bundle: Bundle that was measured.
        out: Folder; None takes ``report/`` beside the bundle's files.
        suggestion: Degrees to export, when they were worked out.
        blocks: Times per block of some degrees.
        feature_gap: Per degree ``without_compensator`` and ``with_compensator``, where it is known.

    Raises:
        CalibrationError: matplotlib or jinja2 is not installed.
        OutputError: The folder cannot be written.
    """
    try:
        import jinja2
        import matplotlib as _  # noqa: F401  # reported here in one line, rather than in the middle of drawing
    except ImportError as error:
        raise CalibrationError(
            f"A report needs {error.name}. Install what it needs: pip install 'tocom[report]'."
        ) from error
    from tocom.calibration.report.figures import draw

    out = bundle.path / REPORT_FOLDER if out is None else Path(out)
    drawings = draw(profile, bundle, blocks=blocks, feature_gap=feature_gap)
    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    # Names of models and devices come from files: escaped, every one of them.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"readable": _readable, "share": _share, "quantile": _quantile}
    entries = profile.degrees.values()
    html = environment.from_string(source).render(
        profile=profile,
        bundle=bundle,
        marks=None if profile.device_state is None else profile.device_state.marks,
        suggestion=suggestion,
        drawings=drawings,
        missing=_missing(profile, blocks, feature_gap),
        has={name: any(map(attrgetter(name), entries)) for name in ("energy", "accuracy", "agreement", "precisions")},
        facts=_facts(profile),
    )
    for drawing in drawings:
        with atomic_path(out / f"{drawing.name}.png") as beside:
            beside.write_bytes(drawing.png)
    with atomic_path(out / "report.html") as beside:
        beside.write_text(html, encoding="utf-8", errors="xmlcharrefreplace")  # a path may not be UTF-8
    return out / "report.html"


def _missing(
    profile: Profile, blocks: Sequence[BlockTimes], feature_gap: Mapping[int, Mapping[str, float]] | None
) -> list[str]:
    """Return what a reader would look for and not find: said, rather than left out."""
    entries = profile.degrees.values()
    absent = (
        (not any(e.accuracy for e in entries), "Accuracy: no images were given (--images)."),
        (not any(e.precisions for e in entries), f"Other precisions: only {profile.precision} was measured."),
        (not any(e.energy for e in entries), "Energy: this device does not measure it."),
        (not feature_gap, "Feature gap: 'tocom evaluate' and the quickstart measure it."),
        (not blocks, "Time per block: it needs ONNX Runtime on the CPU as the backend."),
    )
    return [line for is_missing, line in absent if is_missing]


def _facts(profile: Profile) -> list[tuple[str, str]]:
    facts = [(name.replace("_", " "), str(value)) for name, value in profile.device.items()]
    for name, value in profile.measured.items():
        if name == "reference_answers":
            facts += [(f"reference answers, degree {degree}", _compared(found)) for degree, found in value.items()]
        else:
            facts.append((name.replace("_", " "), _readable(value)))
    entries = profile.degrees.values()
    facts.append(("samples per degree", ", ".join(str(n) for n in sorted({e.latency.count for e in entries}))))
    facts.append(("outliers left out", str(sum(e.latency.outliers for e in entries))))
    if profile.device_state is not None:
        start, end = profile.device_state.start, profile.device_state.end
        for name in sorted({*start, *end} - {"seconds"}):
            after = end.get(name, "–")
            before = start.get(name, after)  # shares of the processor's time are known at the end alone
            facts.append((name.replace("_", " "), str(before) if before == after else f"{before} … {after}"))
    return facts


def _readable(value: Any) -> str:
    """Return a time of a profile as people write it; anything else as it is."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%-d %B %Y, %H:%M %Z").strip(", ")
    except ValueError:
        return str(value)


def _compared(found: Any) -> str:
    """Return what comparing a degree with its reference answers gave, as people write it."""
    if not found["right"] or found["difference"] is None:
        return str(found["found"])
    return f"right, largest difference {found['difference']:.1e} of {found['allowed']:.1e} that are allowed"


def _quantile(latency: Latency, name: str) -> tuple[str, str]:
    interval = latency.intervals_ms.get(name)
    value = f"{getattr(latency, f'{name}_ms'):.2f}"
    return value, "no interval" if interval is None else f"{interval[0]:.2f}–{interval[1]:.2f}"


def _share(accuracy: Accuracy | None) -> tuple[str, str]:
    if accuracy is None:
        return "–", ""
    return f"{accuracy.value:.1%}", f"{accuracy.low:.1%}–{accuracy.high:.1%}\nof {accuracy.count}"
