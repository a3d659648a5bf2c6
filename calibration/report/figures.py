"""The report's figures: drawn once with matplotlib, as SVG that takes the page's colours, and as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tocom.calibration.latency.block_times import KINDS, SUM_TOLERANCE, BlockTimes
from tocom.formats.bundle import Bundle
from tocom.formats.profile import Profile

__all__ = ["Drawing", "draw"]

# Readable on white and on near-black; told apart by the colour-blind (Okabe and Ito).
_BLUE, _ORANGE, _GREEN, _GREY, _PINK = "#3b8fc4", "#d9822b", "#2a9d78", "#8a8a8a", "#c06c9f"
# Stands for the page's text colour: matplotlib writes it, the SVG gets ``currentColor`` instead.
_TEXT = "#010203"
_SIZE = (5.4, 3.7)


@dataclass(frozen=True)
class Drawing:
    """One figure: its name, its title, what it says in words, an SVG element, a PNG's bytes, and what is doubtful."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes
    doubt: str = ""


def draw(
    profile: Profile,
    bundle: Bundle,
    *,
    blocks: Sequence[BlockTimes] = (),
    feature_gap: Mapping[int, Mapping[str, float]] | None = None,
) -> list[Drawing]:
    """Return the figures that this profile has something for."""
    figures = [_figure("staircase", "Latency over tokens", _STAIRS, lambda axes: _staircase(axes, profile, bundle))]
    if any(entry.accuracy for entry in profile.degrees.values()):
        figures.insert(0, _figure("accuracy", "Accuracy over latency", _FRONT, lambda axes: _accuracy(axes, profile)))
    if any(entry.precisions for entry in profile.degrees.values()):
        figures.append(_figure("precision", "Precisions", _PRECISIONS, lambda axes: _precisions(axes, profile)))
    if feature_gap:
        figures.append(_figure("feature-gap", "Feature gap", _GAP, lambda axes: _gap(axes, feature_gap)))
    if blocks:
        ratios = {entry.degree: entry.sum_ms / profile.degrees[entry.degree].latency.p50_ms for entry in blocks}
        sums, doubt = _sums(ratios), _doubt(ratios)
        blocks = [entry.scaled(profile.degrees[entry.degree].latency.p50_ms) for entry in blocks]
        work = _figure("work", "Where the time goes, per degree", f"{_WORK} {sums}", lambda axes: _work(axes, blocks))
        figures.append(replace(work, doubt=doubt))
        if any(entry.whole and entry.blocks for entry in blocks):
            each = _figure("blocks", "Where the time goes, per block", _BLOCKS, lambda axes: _per_block(axes, blocks))
            figures.append(replace(each, doubt=doubt))
    if profile.device_state is not None and len(profile.device_state.readings) > 1:
        readings = profile.device_state.readings
        figures.append(_figure("device", "Device state", _DEVICE, lambda axes: _state(axes, readings)))
    return figures


_FRONT = (
    "Each point is a degree: median latency and accuracy with their 95 % intervals. The line joins the degrees that no "
    "other one beats (Pareto front); crosses are beaten and never used."
)
_STAIRS = (
    "Tokens leaving the last block, and the latency of the degree. Latency falls in steps where the device pads: a "
    "degree that is not faster than one with more tokens brings nothing."
)
_PRECISIONS = "Median latency of each degree at each measured precision; the filled bar is the one to use."
_GAP = "One minus the cosine to the dense model's feature; lower is better."
_WORK = (
    "ONNX Runtime's own profile, op by op, all degrees in turn, without the profiler's own share, drawn as high as p50."
)
_BLOCKS = "Milliseconds of each transformer block. A compressed degree gets cheaper with every block."
_DEVICE = "Clock, temperature and load while measuring. A profile holds for the state that it was measured in."


def _figure(name: str, title: str, caption: str, paint: Callable[[Any], None]) -> Drawing:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
        "svg.hashsalt": "tocom",  # the same figure has the same bytes
        "text.parse_math": False,
        "font.size": 10,
        **{f"{key}.color": _TEXT for key in ("text", "xtick", "ytick")},
        **{f"axes.{key}color": _TEXT for key in ("label", "edge", "title")},
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, color=_GREY)
        paint(axes)
        legend = axes.get_legend()
        if legend is not None:
            legend.get_frame().set_alpha(0)
        text, picture = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(picture, format="png", dpi=150, facecolor="white")
    return Drawing(name, title, caption, _inline(text.getvalue(), name, title), picture.getvalue())


def _inline(svg: str, name: str, title: str) -> str:
    """Return the SVG as an element for the page: no prologue, its text in the page's colour, as wide as the page."""
    head, rest = svg[svg.index("<svg") :].split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL).replace(_TEXT, "currentColor")
    # Several figures share one page, so their ids must differ.
    rest = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", rest)
    head = head.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return f"{head}>{rest}"


def _accuracy(axes: Any, profile: Profile) -> None:
    front = []
    for degree, entry in profile.degrees.items():
        if entry.accuracy is None:
            continue
        x, y = entry.latency.p50_ms, 100 * entry.accuracy.value
        low, high = entry.latency.intervals_ms.get("p50", (x, x))
        used = entry.dominated_by is None
        if used:
            front.append((x, y))
        axes.errorbar(
            x, y, xerr=[[x - low], [high - x]], yerr=[[y - 100 * entry.accuracy.low], [100 * entry.accuracy.high - y]],
            fmt="o" if used else "x", color=_BLUE if used else _GREY, elinewidth=0.8, capsize=2, ms=5,
        )  # fmt: skip
        axes.annotate(str(degree), (x, y), textcoords="offset points", xytext=(5, 5), fontsize=9)
    axes.plot(*zip(*sorted(front), strict=True), "-", color=_BLUE, lw=1.2)
    kinds = {entry.accuracy.kind for entry in profile.degrees.values() if entry.accuracy}
    axes.set(xlabel="median latency, ms", ylabel="accuracy, %" if kinds == {"top1"} else "agreement, %")


def _staircase(axes: Any, profile: Profile, bundle: Bundle) -> None:
    known = [(bundle.degrees[d].token_counts[-1], d, e) for d, e in profile.degrees.items() if d in bundle.degrees]
    known.sort(key=lambda item: item[0])
    tokens = [item[0] for item in known]
    axes.step(tokens, [e.latency.p50_ms for _, _, e in known], where="post", color=_BLUE, lw=1.0, alpha=0.6)
    axes.plot(tokens, [e.latency.p95_ms for _, _, e in known], "_", color=_ORANGE, ms=8, label="p95")
    for used, style, colour, label in ((True, "o", _BLUE, "median"), (False, "x", _GREY, "brings nothing")):
        part = [(t, e.latency) for t, _, e in known if (e.dominated_by is None) == used]
        if part:
            middle = np.array([x.p50_ms for _, x in part])
            ends = np.array([x.intervals_ms.get("p50", (x.p50_ms, x.p50_ms)) for _, x in part])
            errors = np.abs(ends.T - middle)
            axes.errorbar(
                [t for t, _ in part], middle, yerr=errors, fmt=style, color=colour, ms=5, capsize=2, label=label
            )
    for count, degree, entry in known:
        axes.annotate(
            str(degree), (count, entry.latency.p50_ms), textcoords="offset points", xytext=(4, -11), fontsize=9
        )
    axes.set(xlabel="tokens after the last block", ylabel="latency, ms")
    axes.margins(y=0.12)  # the lowest degree stands below its point
    axes.legend(fontsize=9)


def _precisions(axes: Any, profile: Profile) -> None:
    compared = {d: e.precisions for d, e in profile.degrees.items() if e.precisions is not None}
    names = sorted({name for comparison in compared.values() for name in comparison.candidates})
    width = 0.8 / len(names)
    for which, (name, colour) in enumerate(zip(names, (_BLUE, _ORANGE, _GREEN, _PINK), strict=False)):
        label: str | None = name
        for index, comparison in enumerate(compared.values()):
            if name in comparison.candidates:
                wins = comparison.winner == name
                axes.bar(
                    index + (which - (len(names) - 1) / 2) * width, comparison.candidates[name].p50_ms, width * 0.92,
                    facecolor=colour if wins else "none", edgecolor=colour, label=label,
                )  # fmt: skip
                label = None
    axes.set_xticks(range(len(compared)), [str(degree) for degree in compared])
    axes.set(xlabel="degree", ylabel="median latency, ms")
    axes.legend(fontsize=9)


def _gap(axes: Any, feature_gap: Mapping[int, Mapping[str, float]]) -> None:
    for key, colour, label, shift in (
        ("without_compensator", _ORANGE, "without compensator", -0.2),
        ("with_compensator", _BLUE, "with compensator", 0.2),
    ):
        axes.bar([i + shift for i in range(len(feature_gap))], [gap[key] for gap in feature_gap.values()], 0.38,
                 color=colour, label=label)  # fmt: skip
    axes.set_xticks(range(len(feature_gap)), [str(degree) for degree in feature_gap])
    axes.set(xlabel="degree", ylabel="1 − cosine to the dense feature")
    axes.legend(fontsize=9)


def _sums(ratios: Mapping[int, float]) -> str:
    """Say what the ops of each degree sum to before they are drawn to p50."""
    listed = [f"{ratio:.0%} at degree {degree}" for degree, ratio in ratios.items()]
    return f"As measured, the ops' sum is this share of p50: {', '.join(listed)}."


def _doubt(ratios: Mapping[int, float]) -> str:
    """Say where the inferences that were profiled took another time than the latency that the page shows elsewhere."""
    apart = [f"degree {degree} ({ratio:.0%})" for degree, ratio in ratios.items() if abs(ratio - 1) > SUM_TOLERANCE]
    if not apart:
        return ""
    return f"Doubtful: while profiling the device took another time than p50, at {', '.join(apart)}."


def _work(axes: Any, blocks: Sequence[BlockTimes]) -> None:
    bottom = [0.0] * len(blocks)
    for kind, colour in zip(KINDS, (_BLUE, _ORANGE, _GREEN, _GREY), strict=True):
        values = [entry.totals[kind] for entry in blocks]
        axes.bar(range(len(blocks)), values, 0.7, bottom=bottom, color=colour, label=kind)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    axes.set_xticks(range(len(blocks)), [str(entry.degree) for entry in blocks])
    axes.set(xlabel="degree", ylabel="ms", ylim=(0, max(bottom) * 1.35))
    axes.legend(fontsize=9, ncols=2, loc="upper center")


def _per_block(axes: Any, blocks: Sequence[BlockTimes]) -> None:
    known = [entry for entry in blocks if entry.whole and entry.blocks]
    shown = known if len(known) <= 3 else [known[0], known[len(known) // 2], known[-1]]
    for entry, colour in zip(shown, (_BLUE, _GREEN, _ORANGE), strict=False):
        sums = [sum(block.values()) for block in entry.blocks]
        axes.plot(range(len(sums)), sums, "o-", color=colour, ms=4, lw=1.2, label=f"degree {entry.degree}")
    axes.set(xlabel="block", ylabel="ms", ylim=(0, None))
    axes.legend(fontsize=9)


def _state(axes: Any, readings: Sequence[Mapping[str, Any]]) -> None:
    """Draw each series over its own largest value: clocks, temperatures and shares have no common unit."""
    keys = sorted(
        {key for reading in readings for key, v in reading.items() if isinstance(v, (int, float))} - {"seconds"}
    )
    wanted = [key for key in keys if key.endswith(("clock_mhz", "temperature_c", "power_w", "_share"))][:8]
    colours = (_BLUE, _ORANGE, _GREEN, _PINK, _GREY, "#7a6fd0", "#a08000", "#4aa3a3")
    for key, colour in zip(wanted, colours, strict=False):
        points = [(reading["seconds"], reading[key]) for reading in readings if key in reading and "seconds" in reading]
        most = 1.0 if key.endswith("_share") else max(abs(value) for _, value in points) or 1.0
        label = key.replace("_", " ") if key.endswith("_share") else f"{key.replace('_', ' ')}, of {most:g}"
        axes.plot([s for s, _ in points], [v / most for _, v in points], "-", lw=1.2, color=colour, label=label)
    axes.set(xlabel="seconds", ylabel="share of the largest value", ylim=(0, 1.5))
    axes.legend(fontsize=8, ncols=2, loc="upper center")
