"""``tocom evaluate``: accuracy of every (source, target) pair, with and without the compensator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tocom.cli.app import output, print_json, table_of
from tocom.cli.model_options import ModelOptions, print_loaded, with_option_groups
from tocom.cli.options import Degrees, Device, one_of
from tocom.cli.progress import steps
from tocom.errors import RequestError

if TYPE_CHECKING:
    from tocom.compensator.compensator import Compensator
    from tocom.compression.loading.model import LoadedModel
    from tocom.evaluation.answers import Scores
    from tocom.evaluation.pairs import Evaluation

__all__ = ["evaluate"]

_WAYS = {"without": "alone", "compensated": "compensator", "aligned": "alignment", "both": "both"}


@with_option_groups
def evaluate(
    images: Annotated[Path, typer.Option(help="Test images, one subfolder per class; with --schedules any.")],
    degrees: Degrees,
    source: ModelOptions,
    compensator: Annotated[Path | None, typer.Option(help="Compensator file.")] = None,
    schedules: Annotated[
        bool, typer.Option("--schedules", help="Compare families of schedules at equal products instead, unlabelled.")
    ] = False,
    method: Annotated[
        str | None, one_of("'merge' or 'prune'; default: the compensator's, merge without one.", "merge", "prune")
    ] = None,
    profiled: Annotated[
        list[Path] | None,
        typer.Option(help="With --schedules: a calibrated bundle of a family, for its latencies; repeat for more."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="DEGREE=FILE, the checkpoint fine-tuned at a source degree; repeat for more. FILE alone is "
            "of degree 0; default: 0=pretrained."
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Images to choose the scale on, one subfolder per class; default: a share of --images."),
    ] = None,
    held_out_share: Annotated[float, typer.Option(help="That share, of every class; not tested on.")] = 0.2,
    scale: Annotated[float | None, typer.Option(help="Use this scale, hold nothing out, give no verdict.")] = None,
    max_loss: Annotated[
        float, typer.Option("--max-loss-points", help="Points of accuracy that a degree may lose before it is refused.")
    ] = 1.0,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Measure alignments too, fitted on the held-out images without labels, and choose among all.",
        ),
    ] = False,
    keep_scale: Annotated[
        bool, typer.Option("--keep-scale", help="Do not write the chosen scale into the compensator.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and evaluation.png.")] = None,
    answers: Annotated[Path | None, typer.Option(help="CSV file for what is answered to each test image.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure accuracy and feature gap with and without a compensator, and say which degrees to use.

    The scale and the verdicts come from held-out images; the figures are of the others.
    """
    from tocom.compensator.compensator import Compensator
    from tocom.evaluation.held_out import split_samples
    from tocom.evaluation.pairs import evaluate as run
    from tocom.images import class_folders, image_files
    from tocom.system.files import check_writable, write_json
    from tocom.training.distributed import choose_device

    for folder in (out, None if answers is None else answers.parent):
        if folder is not None:
            check_writable(folder)
    if not 0 <= max_loss <= 100:
        raise RequestError(f"The '--max-loss-points' option must be from 0 to 100. Got {max_loss!r} instead.")
    others = {
        "compensator": compensator,
        "held-out": held_out,
        "scale": scale,
        "align": align or None,
        "answers": answers,
    }
    unused = [f"--{name}" for name, value in others.items() if value is not None]
    if schedules and unused:
        raise RequestError(
            "The '--schedules' option compares families without a compensator, on all images, by feature gap alone. "
            f"Leave out {', '.join(unused)}."
        )
    if profiled and not schedules:
        raise RequestError("The '--profiled' option belongs to --schedules. Give both, or neither.")
    for folder in filter(None, (images, held_out)):
        image_files(folder)  # raises what is not there, before a model is loaded
    torch_device = choose_device(device)
    files = _by_source(weights or ["0=pretrained"])
    part = None if compensator is None else Compensator.load(compensator)
    if part is not None and method not in (None, part.method):
        raise RequestError(f"The compensator {compensator} is for --method {part.method}. Got {method!r} instead.")
    method = method or "merge"
    loaded = {degree: source.load(file) for degree, file in files.items()}
    first = next(iter(loaded.values()))
    if schedules:
        first.model.to(torch_device)
        _compare(first, images, degrees, method, profiled or [], batch_size, out, as_json)
        return
    test, kept = class_folders(images, first.labels, classes=first.model.num_classes), []
    if held_out is not None:
        kept = class_folders(held_out, first.labels, classes=first.model.num_classes)
    elif scale is None:
        kept, test = split_samples(test, held_out_share, seed)
    with steps() as progress:
        result = run(
            {degree: each.model.to(torch_device) for degree, each in loaded.items()},
            part,
            first.input_entry,
            test=test,
            held_out=kept,
            targets=degrees,
            scale=scale,
            allowed=max_loss / 100,
            method=method,
            align=align,
            batch_size=batch_size,
            progress=progress,
        )
    split = f"{held_out_share} of every class, seed {seed}" if kept and held_out is None else None
    origin: dict[str, Any] = {"weights": {str(degree): file for degree, file in files.items()}, "split": split}
    origin["input"] = {**first.input_entry, "sources": first.origins}
    result = dataclasses.replace(result, provenance={**result.provenance, **origin})
    if out is not None:
        from tocom.evaluation.chart import draw_chart
        from tocom.evaluation.heat_map import draw

        write_json(out / "evaluation.json", result.to_json())
        (draw_chart if len(files) == 1 else draw)(result, out / "evaluation.png")
    if answers is not None:
        _write_answers(answers, result, [path for path, _ in test])
    if as_json:
        print_json(result.to_json())
    else:
        _show(result, loaded.values(), len(kept))
    if part is not None and not as_json:
        output.print(f"scale {result.scale}, {result.scale_chosen_by}", soft_wrap=True)
    if kept and not keep_scale and part is not None and compensator is not None:
        # Last: what was measured is shown even where the compensator cannot be written to.
        said = _carry_scale(part, compensator, result)
        if not as_json:
            output.print(said, soft_wrap=True)


def _show(result: Evaluation, models: Iterable[LoadedModel], held_out: int) -> None:
    """Print what was found, of models and a number of held-out images."""
    from tocom.evaluation.verdict import FEWEST_IMAGES

    for each in models:
        print_loaded(each)
    output.print(_table(result))
    for pair in result.pairs:
        if pair.verdict and pair.verdict.note:
            output.print(f"source {pair.source}, target {pair.target}: {pair.verdict.note}", soft_wrap=True)
    if held_out and not any(pair.verdict for pair in result.pairs):
        output.print(f"no verdict: {held_out} held-out images are too few; {FEWEST_IMAGES} are needed, or more")


def _carry_scale(part: Compensator, file: Path, result: Evaluation) -> str:
    """Write the chosen scale into the compensator, so that export takes it; return what was done, in a line."""
    if not result.scale:
        return "The compensator helps at none of its scales: export without it."
    if result.scale != part.scale:
        before, part.scale = part.scale, result.scale
        part.metadata["scale_chosen_by"] = result.scale_chosen_by
        part.save(file)
        return f"wrote scale {result.scale:g} into {file} (was {before:g}); tocom export --compensator {file} takes it"
    return f"tocom export --compensator {file} takes this scale"


def _write_answers(path: Path, result: Evaluation, images: list[Path]) -> None:
    """Write a line per source, target, kind of answer and test image."""
    import csv

    from tocom.system.files import atomic_path

    with atomic_path(path) as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("source", "target", "way", "image", "label", "answer", "log_loss", "feature_gap"))
        for (source, target, way), each in result.answers.items():
            for index, image in enumerate(images):
                known: tuple[Any, Any] = ("", "")
                if each.answer is not None and each.log_loss is not None:
                    known = each.answer[index], each.log_loss[index]
                row = (source, target, way, image, each.label[index], *known, each.gap[index])
                writer.writerow(row)


def _compare(
    loaded: LoadedModel,
    images: Path,
    degrees: list[int],
    method: str,
    profiled: list[Path],
    batch_size: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print, and where asked write, how families of schedules compare."""
    from tocom.evaluation.families import compare_families, suggest_family
    from tocom.formats.bundle import Bundle
    from tocom.formats.profile import Profile, find_profiles
    from tocom.system.files import write_json
    from tocom.training.image_files import ImageFiles

    latencies = {}
    for path in profiled:
        bundle, profiles = Bundle(path, verify=False), find_profiles(path)
        named = bundle.manifest["model"]["name"]
        if named != loaded.name:
            raise RequestError(f"The bundle {path} is of {named}, the model is {loaded.name}. Give one of this model.")
        if not profiles:
            raise RequestError(f"The bundle {path} has no profile. Make one on the device: tocom calibrate {path}")
        entries = Profile.load(profiles[-1]).degrees
        latencies[bundle.manifest["family"]] = {degree: each.latency.p50_ms for degree, each in entries.items()}
    files = ImageFiles(images, loaded.input_entry)
    with steps() as progress:
        rows = compare_families(
            loaded.model,
            files,
            degrees=degrees,
            families=list(latencies) or None,
            method=method,
            latencies=latencies,
            batch_size=batch_size,
            progress=progress,
        )
    best = suggest_family(rows)
    content = {"images": len(files), "method": method, "suggested": best, "rows": [vars(row) for row in rows]}
    if out is not None:
        write_json(out / "families.json", content)
    if as_json:
        print_json(content)
        return
    shown = []
    for row in rows:
        mean, low, high = row.difference
        shown.append(
            (
                row.family,
                row.degree,
                f"{row.macs / 1e9:.2f}",
                row.removing_blocks,
                f"{row.gap:.5f}",
                f"{mean:+.5f} ({low:+.5f} to {high:+.5f})",
                "–" if row.latency_ms is None else f"{row.latency_ms:.2f}",
            )
        )
    columns = ("family", "degree", "GMACs", "removing blocks", "feature gap", "more than every", "p50 ms")
    table = table_of(columns, shown, title=f"families of schedules, {method}, {len(files)} images, no compensator")
    output.print(table)
    output.print(f"suggested: {best}")


def _by_source(options: list[str]) -> dict[int, str]:
    files: dict[int, str] = {}
    for option in options:
        degree, found, file = option.partition("=")
        if not found:
            degree, file = "0", option
        if not degree.isdecimal() or not file or int(degree) in files:
            raise RequestError(
                f"The 'weights' option must be FILE or DEGREE=FILE, each degree once. Got {options!r} instead."
            )
        files[int(degree)] = file
    return files


def _table(result: Evaluation) -> Table:
    names = ("feature gap",) if result.pairs[0].without.accuracy is None else ("accuracy", "log-loss", "feature gap")
    title = f"{result.provenance['model']}, {result.method}, {result.images['test']} test images"
    table = table_of(("source", "target", "way", *names, "verdict"), (), title=title, left=("way", "verdict"))
    for pair in result.pairs:
        ways = pair.ways() if pair.source != pair.target else {"without": pair.without}
        first = (str(pair.source), str(pair.target), pair.verdict.words if pair.verdict else "–")
        for way, scores in ways.items():
            source, target, words = first if way == "without" else ("", "", "")
            end = way == list(ways)[-1]
            table.add_row(source, target, _WAYS[way], *_cells(scores), words, end_section=end)
    return table


def _cells(scores: Scores) -> list[str]:
    gap = f"{max(scores.feature_gap, 0.0):.5f}"  # rounding makes a gap of none a little negative
    if scores.accuracy is None or scores.log_loss is None:
        return [gap]
    return [f"{100 * scores.accuracy:.2f} %", f"{scores.log_loss:.4f}", gap]
