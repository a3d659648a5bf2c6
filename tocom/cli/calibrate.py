"""``tocom calibrate``: measure latency and accuracy of every degree on this device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tocom.cli.alignment_table import alignment_table
from tocom.cli.app import console, output, print_json, table_of
from tocom.cli.options import BackendName, CheckFolder, Threads, TrustedKeys, trusted_bundle
from tocom.cli.progress import steps
from tocom.errors import OutputError, RequestError
from tocom.formats.profile import PROFILES_FOLDER, Profile

if TYPE_CHECKING:
    from tocom.calibration import Suggestion
    from tocom.calibration.latency.block_times import BlockTimes
    from tocom.formats.bundle import Bundle

__all__ = ["calibrate"]


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Images: one subfolder per class measures accuracy, a flat folder agreement with degree 0."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Most timed inferences per degree after the warm-up.")] = 400,
    tolerance: Annotated[
        float, typer.Option(help="Stop before, once the 95 % intervals of p50, p90 and p95 are this narrow: ± 0.03.")
    ] = 0.03,
    backend: BackendName = "auto",
    threads: Threads = None,
    batch: Annotated[
        int | None, typer.Option(help="Images per inference, in the bundle's range; default: its optimal batch.")
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(help="Refuse images too few for a 95 % interval of at most ± this many points of accuracy."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="The same model at another precision (INT8: float32): note the winner, or align to it."),
    ] = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Measure no latency: fit maps of the features from the engines' own answers to --images, no labels "
            "needed, to the source degree's; of --against where given.",
        ),
    ] = False,
    check: CheckFolder = None,
    seed: Annotated[int, typer.Option(help="Seed of the measuring order, or of --align's fifths.")] = 0,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Measure nothing: take the saved profile of this device and power mode.")
    ] = False,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Say which degrees to export for this device, and why.")
    ] = False,
    max_loss: Annotated[
        float, typer.Option(help="Points of accuracy that the suggestion may lose on average over the budgets.")
    ] = 0.05,
    most: Annotated[int | None, typer.Option(help="Suggest at most so many degrees.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write report/report.html beside the bundle's files: one file, no network.")
    ] = False,
    trusted_key: TrustedKeys = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the profile (with --suggest: and the suggestion) as JSON.")
    ] = False,
) -> None:
    """Measure latency (and accuracy, with --images) per degree, and save the profile beside the bundle."""
    # Imported here: the command line must start, and tell what is missing, without numpy's weight.
    from tocom.calibration import block_times, saved_profile, suggest_degrees, write_report
    from tocom.calibration import calibrate as measure
    from tocom.calibration.suggest import check_limits
    from tocom.runtime.backends.select import compare_measured
    from tocom.system.files import check_writable

    options: dict[str, Any] = {"against": against, "backend": backend, "threads": threads, "seed": seed}
    options["trusted_keys"] = trusted_key
    check_limits(max_loss / 100, most)
    if align:
        _align(bundle, images, check, as_json, **options)
        return
    unsaved: OutputError | None = None
    if not reuse and bundle.is_dir():  # found before minutes of measuring; without a folder, opening it says more
        try:
            check_writable(bundle / PROFILES_FOLDER)
        except OutputError as error:
            if report:
                raise
            unsaved = error
            console.print(f"the figures are shown, not saved: {unsaved}", style="yellow", soft_wrap=True)
    if reuse:
        profile = saved_profile(bundle, backend=backend, threads=threads)
    else:
        try:
            with steps() as progress:
                profile = measure(
                    bundle,
                    images,
                    save=unsaved is None,
                    samples=samples,
                    tolerance=tolerance,
                    batch=batch,
                    interval_points=interval,
                    progress=progress,
                    **options,
                )
        except OutputError as error:
            if not isinstance(error.unsaved, Profile):
                raise
            profile, unsaved = error.unsaved, error
    opened = trusted_bundle(bundle, trusted_key)
    suggestion = None
    if suggest or report:
        suggestion = suggest_degrees(profile, max_loss=max_loss / 100, most=most)
    page = None
    if report:
        blocks: list[BlockTimes] = []
        if profile.backend == "onnxruntime":  # the times of each block are known there alone
            p50_ms = {degree: entry.latency.p50_ms for degree, entry in profile.degrees.items()}
            with steps() as progress:
                blocks = block_times(opened, list(p50_ms), threads=profile.threads, p50_ms=p50_ms, progress=progress)
        page = write_report(profile, opened, suggestion=suggestion, blocks=blocks)
    shown = suggestion if suggest else None
    if as_json:
        content = profile.to_json()
        print_json(content if shown is None else {"profile": content, "suggestion": shown.to_json()})
    else:
        output.print(_table(profile))
        for degree, entry in profile.degrees.items():
            if entry.precisions is not None:
                output.print(f"degree {degree}: use {entry.precisions.winner}; {entry.precisions.reason}")
        for mark in () if profile.device_state is None else profile.device_state.marks:
            console.print(f"doubtful: {mark}", style="yellow", soft_wrap=True)
        if shown is not None:
            output.print(_suggestion_table(shown, opened))
            _conclude(shown)
    if unsaved is not None:
        raise unsaved
    if as_json:
        return
    if not reuse:
        console.print(f"saved {bundle}/profiles/{profile.fingerprint}.json", soft_wrap=True)
    if compared := compare_measured(opened, profile.threads)[1]:
        console.print(compared, soft_wrap=True)
    if page is not None:
        console.print(f"wrote {page}", soft_wrap=True)


def _align(bundle: Path, images: Path | None, check: Path | None, as_json: bool, **options: Any) -> None:
    """Fit the on-device alignment, and say what the images said of it."""
    from tocom.calibration import align_engines
    from tocom.formats.device_alignment import ALIGNMENTS_FOLDER

    if images is None:
        raise RequestError("The '--align' option needs --images FOLDER: 25 images or more, no labels.")
    with steps() as progress:
        found = align_engines(bundle, images, check=check, progress=progress, **options)
    if as_json:
        print_json(found.describe())
        return
    output.print(alignment_table(str(bundle), found.images, found.checked_on, found.degrees))
    console.print(
        f"saved in {bundle}/{ALIGNMENTS_FOLDER}; the runtime uses it from now on. What the degrees are worth with it: "
        f"tocom calibrate {bundle} --images OTHERS",
        soft_wrap=True,
    )


def _table(profile: Profile) -> Table:
    setting = f"{profile.backend}, {profile.precision}, batch {profile.batch}, {profile.threads} threads"
    mode = profile.device.get("power_mode")
    entries = profile.degrees.values()
    energy = any(entry.energy for entry in entries)
    measured = next((entry.accuracy for entry in entries if entry.accuracy), None)
    columns = (
        *("degree", "p50 ms\n95 % interval", "p90 ms", "p95 ms\n95 % interval", "p99 ms", "samples", "outliers"),
        *(["mJ"] if energy else []),
        *([f"{measured.kind} of {measured.count}\n95 % interval", "same as\nlowest degree"] if measured else []),
        "beaten by",
    )
    rows = []
    for degree, entry in profile.degrees.items():
        latency, accuracy = entry.latency, entry.accuracy
        shares = [
            "–" if accuracy is None else f"{accuracy.value:.1%}\n{accuracy.low:.1%}–{accuracy.high:.1%}",
            "–" if entry.agreement is None else f"{entry.agreement.value:.1%}",
        ]
        p50, p95 = _quantile(latency, "p50"), _quantile(latency, "p95")
        rows.append(
            (
                *(degree, p50, f"{latency.p90_ms:.2f}", p95, f"{latency.p99_ms:.2f}", latency.count, latency.outliers),
                *([f"{entry.energy.millijoules:.1f}" if entry.energy else "–"] if energy else []),
                *(shares if measured else []),
                "–" if entry.dominated_by is None else entry.dominated_by,
            )
        )
    table = table_of(columns, rows, title=f"{profile.model}, {setting}{f', {mode}' if mode else ''}")
    table.caption = _references(profile)
    return table


def _references(profile: Profile) -> str | None:
    """Return what came of the comparison with the bundle's reference answers, in words; None where none was made."""
    found = profile.measured.get("reference_answers")
    if not found:
        return None
    wrong = [degree for degree, each in found.items() if not each["right"]]
    right = [each for each in found.values() if each["right"] and each["difference"] is not None]
    shares = [each["difference"] / each["allowed"] for each in right]
    text = f"reference answers: given at {len(found) - len(wrong)} of {len(found)} degrees"
    text += f", with at most {max(shares):.1%} of the allowed difference" if shares else ""
    return text + (f"; not served, because wrong: {', '.join(wrong)}" if wrong else "")


def _quantile(latency: Any, name: str) -> str:
    interval = latency.intervals_ms.get(name)
    value = f"{getattr(latency, f'{name}_ms'):.2f}"
    return f"{value}\ntoo few" if interval is None else f"{value}\n{_short(interval[0])}–{_short(interval[1])}"


def _short(ms: float) -> str:
    """Write milliseconds so that both ends of an interval fit a column: 84.27, 111.8, 1240."""
    return f"{ms:.{2 if ms < 100 else 1 if ms < 1000 else 0}f}"


def _suggestion_table(suggestion: Suggestion, bundle: Bundle) -> Table:
    table = Table(title="Which degrees to export for this device")
    for column in ("degree", "tokens out", ""):
        table.add_column(column, justify="left" if not column else "right")
    for degree, reason in suggestion.reasons.items():
        entry = bundle.degrees.get(degree)
        tokens = "–" if entry is None else str(entry.token_counts[-1])
        table.add_row(str(degree), tokens, reason, style="bold" if degree in suggestion.degrees else "dim")
    return table


def _conclude(suggestion: Suggestion) -> None:
    degrees = ",".join(map(str, suggestion.degrees))
    low, high = suggestion.budgets_ms
    output.print(f"tocom export … --degrees {degrees}", soft_wrap=True)
    if suggestion.accuracy == "degree":
        output.print("accuracy was not measured (--images): chosen by latency alone", soft_wrap=True)
    else:
        lost = f"{100 * suggestion.mean_loss:.3f} points on average, at most {100 * suggestion.worst_loss:.2f}"
        output.print(
            f"loses {lost}, over budgets of {low:.1f} … {high:.1f} ms, against all {len(suggestion.reasons)} degrees",
            soft_wrap=True,
        )
