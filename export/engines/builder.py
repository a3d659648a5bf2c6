"""bundle → engines: one per degree, for TensorRT or TensorRT-RTX, through one code path."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tocom.errors import EngineError, RequestError, TocomError
from tocom.export.engines.backend import PORTABLE, BackendFound, Device, find_backend, find_device
from tocom.export.engines.ladder import rungs
from tocom.export.engines.process import Job, build_engines
from tocom.export.engines.record import Plan, current, library_name, make_record
from tocom.export.engines.source import OnnxSource, read_source
from tocom.export.engines.trial import run_trial
from tocom.export.op_plugin.library import OpPluginLibrary, build_library, check_library, read_library
from tocom.formats.build_options import BuildOptions
from tocom.formats.bundle import Bundle
from tocom.formats.engine import engine_name
from tocom.formats.sidecar import EngineAnswers, Sidecar, read_sidecar, write_sidecar
from tocom.system.files import atomic_path, remove_stale, sha256_file
from tocom.system.locks import exclusive
from tocom.system.progress import Progress, silent
from tocom.system.sealed_library import hold_library

__all__ = ["TIMEOUT_S", "EngineSet", "build", "engine_folder"]

# A large model takes tens of minutes on a Jetson; an hour for one engine is a hang.
TIMEOUT_S = 3600.0
_AMPERE = (8, 0)


@dataclass(frozen=True)
class EngineSet:
    """The engines of one bundle for one device.

    Attributes:
        folder: Where they are.
        records: Each degree's sidecar, ascending by degree.
        built: The degrees built now; the others were current.
        notes: What people should know, such as why the lowering is native.
    """

    folder: Path
    records: dict[int, Sidecar]
    built: tuple[int, ...]
    notes: tuple[str, ...]


def build(
    bundle: Bundle | Path | str,
    *,
    backend: str = "auto",
    lowering: str | None = None,
    degrees: Sequence[int] | None = None,
    batch: tuple[int, int, int] | int | None = None,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    compact: bool | None = None,
    op_plugin: Path | str | None = None,
    timeout_s: float | None = TIMEOUT_S,
    memory_limit_mib: int | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] | None = None,
) -> EngineSet:
    """Build the engines that are missing or no longer current, in a child process.

    Args:
        bundle: The bundle, or its folder.
        backend: ``tensorrt``, ``tensorrt-rtx``, or ``auto`` for the first that is installed.
        lowering: ``plugin`` or ``native``; None takes the op plugin, and where its library cannot be built, native.
        degrees: Degrees to build; None takes all of the bundle.
        batch: Batch, or (smallest, optimal, largest); None takes the bundle's.
        workspace_mib: Most scratch memory of a layer, in MiB.
        optimization_level: 0 (fast build) … 5 (fast engine).
        version_compatible: Engines that newer TensorRT versions of the same major load.
        hardware_compatible: Engines for other architectures too.
        compact: Store engines with their text deflated, for the runtime; False stores them as TensorRT wrote them, for
            other tools. None: compact for TensorRT-RTX, whose engines are a sixth text.
        op_plugin: A library built elsewhere; None builds or takes the cached one.
        timeout_s: Seconds that one engine may take until its build is killed; None sets no limit.
        memory_limit_mib: Most memory that the process that builds may hold in RAM, in MiB; None sets no limit.
        progress: Called with what is being done, the steps done, and all steps.
        say: Called with what was found and decided, one line each.

    Returns:
        The engines, in ``bundle/engines/<device>/``.

    Raises:
        BundleError: The bundle is missing, damaged, or has no such degree.
        RequestError: An option is out of its range.
        EngineError: The backend is missing, the library does not fit, or an engine cannot be built within the limits.
        OutputError: The folder cannot be written.
    """
    tell = say or (lambda line: None)
    _check_limits(timeout_s, memory_limit_mib)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle, verify=False)
    found = find_backend(backend)
    options = BuildOptions(
        lowering=lowering or "plugin",
        batch=_batch_range(bundle, batch),
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        compact=found.name == "tensorrt-rtx" if compact is None else compact,
    )
    chosen = sorted(set(bundle.degrees if degrees is None else degrees))
    for degree in chosen:
        bundle.onnx_path(degree)  # raises when it is not there
    bundle.require_verified()
    for degree in chosen:
        bundle.read_onnx(degree)  # a parser follows every path in the file: they must lead to the manifest's files
    sources = {degree: read_source(bundle.onnx_path(degree)) for degree in chosen}
    device = find_device()
    if found.name == "tensorrt" and device is None:
        raise EngineError(
            "TensorRT builds engines on the GPU they run on, and this machine shows none. Build on the device, or "
            "for TensorRT-RTX: --backend tensorrt-rtx."
        )
    _check_precision(bundle, sources, device)
    portable = f"no GPU: portable engines, for compute capability {', '.join(PORTABLE)} and no other"
    tell(f"{found.name} {found.version}, {device.name if device else portable}")
    library, notes = None, []
    if options.lowering == "plugin" and any(source.op_nodes for source in sources.values()):
        try:
            library = _library(op_plugin, found, device, tell)
        except TocomError as error:
            if lowering is not None or op_plugin is not None:
                raise
            notes.append(f"lowering is native, because the op plugin library cannot be used: {error}")
            tell(notes[-1])
            options = replace(options, lowering="native")

    folder = engine_folder(bundle, found, device)
    plans = [
        Plan(bundle, degree, source, found, device, options, library if source.op_nodes else None, folder)
        for degree, source in sources.items()
    ]
    with exclusive(folder / ".lock", on_wait=lambda: tell(f"waiting for another build in {folder}")):
        records, built = _build_missing(
            plans,
            folder,
            tell,
            timing_cache=folder / "timing.cache",
            progress=progress,
            timeout_s=timeout_s,
            memory_limit_mib=memory_limit_mib,
        )
    return EngineSet(folder, records, built, tuple(notes))


def engine_folder(bundle: Bundle, backend: BackendFound, device: Device | None) -> Path:
    """Return the folder of a device's engines, such as ``engines/tensorrt-rtx-1.7.1-portable``."""
    where = "portable" if device is None else device.slug
    version = ".".join(backend.version.split(".")[:3])
    return bundle.path / "engines" / f"{backend.name}-{version}-{where}"


def _check_limits(timeout_s: float | None, memory_limit_mib: int | None) -> None:
    if timeout_s is not None and not 0 < timeout_s < 1e6:
        raise RequestError(f"The 'timeout_s' parameter must be a number of seconds greater than 0. Got {timeout_s!r}.")
    if memory_limit_mib is not None and memory_limit_mib < 1:
        raise RequestError(f"The 'memory_limit_mib' parameter must be at least 1. Got {memory_limit_mib!r} instead.")


def _check_precision(bundle: Bundle, sources: dict[int, OnnxSource], device: Device | None) -> None:
    """Refuse what TensorRT refuses later, in words that do not say what to do.

    Raises:
        EngineError: bfloat16 for a GPU that lacks it, or INT8 with zero points.
    """
    if bundle.precision == "bf16" and device is not None and device.compute_capability < _AMPERE:
        raise EngineError(
            f"{bundle.path} is in bfloat16, which needs compute capability 8.0 (Ampere) or newer; {device.name} has "
            f"{'.'.join(map(str, device.compute_capability))}. Export the bundle with --precision fp16."
        )
    asymmetric = [degree for degree, source in sources.items() if source.zero_points]
    if asymmetric:
        raise EngineError(
            f"{bundle.path} quantizes activations to uint8 with zero points (degrees "
            f"{', '.join(map(str, asymmetric))}), which TensorRT refuses; it takes int8 without. Quantize the bundle "
            "again: 'tocom quantize --activations symmetric'."
        )


def _build_missing(
    plans: Sequence[Plan], folder: Path, tell: Callable[[str], None], **how: Any
) -> tuple[dict[int, Sidecar], tuple[int, ...]]:
    """Return all sidecars, ascending by degree, and the degrees that were built."""
    remove_stale(folder)
    found = {plan.degree: current(plan) for plan in plans}
    stale = {plan.degree: plan for plan in plans if found[plan.degree] is None}
    records = {degree: sidecar for degree, sidecar in found.items() if sidecar is not None}
    if not stale:
        return records, ()

    def keep(degree: int, facts: dict[str, Any]) -> None:
        records[degree] = make_record(stale[degree], facts)
        write_sidecar(stale[degree].sidecar, records[degree])

    # An engine that is being replaced has no valid sidecar until the new one stands.
    for plan in stale.values():
        plan.sidecar.unlink(missing_ok=True)
        (folder / engine_name(plan.degree, compact=not plan.options.compact)).unlink(missing_ok=True)
    library = next((plan.library for plan in stale.values() if plan.library is not None), None)
    if library is not None:
        _copy_library(library, folder)
    try:
        if plans[0].device is None:
            _run_builder(list(stale.values()), keep, **how)
        else:
            records |= _build_right(list(stale.values()), tell, **how)
    finally:
        remove_stale(folder)  # a child that was killed cannot
    _drop_unused_libraries(folder)
    return dict(sorted(records.items())), tuple(stale)


def _run_builder(plans: Sequence[Plan], on_done: Callable[[int, dict[str, Any]], object], **how: Any) -> None:
    """Build engines of equal options in one child process."""
    # The op plugin is loaded for all jobs of a child or for none; degrees without ops build the same either way.
    build_engines(
        plans[0].backend,
        [Job(plan.degree, plan.source.path, plan.engine, plan.source.op_nodes) for plan in plans],
        plans[0].options,
        op_plugin=next((plan.library for plan in plans if plan.library is not None), None),
        compute_capabilities=PORTABLE if plans[0].device is None else (),
        on_done=on_done,
        **how,
    )


def _build_right(plans: Sequence[Plan], tell: Callable[[str], None], **how: Any) -> dict[int, Sidecar]:
    """Build engines on their device, one by one, until each answers rightly; write and return the sidecars.

    Raises:
        EngineError: A degree answers wrongly however it is built, or cannot be built as asked, or the backend does not
            support this GPU. Those that are right are kept.
    """
    records, wrong = {}, []
    for plan in plans:
        tried: list[str] = []
        for name, options in rungs(plan.options, has_ops=plan.source.op_nodes > 0, precision=plan.bundle.precision):
            attempt = replace(plan, options=options, library=None if options.lowering == "native" else plan.library)
            built: dict[int, dict[str, Any]] = {}
            try:
                _run_builder([attempt], built.__setitem__, **how)
            except EngineError as error:
                if not tried:
                    raise
                found = str(error)
            else:
                sidecar = make_record(attempt, built[plan.degree])
                trial = run_trial(plan.bundle.path, plan.folder, sidecar, timeout_s=how.get("timeout_s"))
                if trial.is_right:
                    asked = plan.made_from()["options"] if tried else None
                    answers = EngineAnswers("right", trial.difference, trial.allowed, trial.cosine, tuple(tried), asked)
                    records[plan.degree] = replace(sidecar, answers=answers)
                    write_sidecar(plan.sidecar, records[plan.degree])
                    tell(f"degree {plan.degree}, {name}: answers rightly ({trial.found})")
                    break
                if not trial.can_run:
                    plan.engine.unlink(missing_ok=True)
                    raise EngineError(trial.found)
                found = trial.found
            tried.append(f"{name}: {found}")
            tell(f"degree {plan.degree}, {name}: not kept, {found}")
        else:
            plan.engine.unlink(missing_ok=True)
            wrong.append(f"degree {plan.degree}: {'; '.join(tried)}")
    if wrong:
        first = plans[0]
        raise EngineError(
            f"{first.backend.name} {first.backend.version} answers wrongly however it is built, so these engines are "
            f"not kept: {'. '.join(wrong)}. Serve with another backend, or another version of this one, or export in "
            f"another precision than {first.bundle.precision}; 'tocom check {first.bundle.path}' compares them."
        )
    return records


def _library(
    given: Path | str | None, backend: BackendFound, device: Device | None, say: Callable[[str], None]
) -> OpPluginLibrary:
    if given is not None:
        library = read_library(given)
    else:
        # On a device, code for that device is enough, and compiles in a fraction of the time.
        capability = None if device is None else (device.compute_capability[0] * 10 + device.compute_capability[1],)
        library = build_library(architectures=capability, say=say)
    check_library(
        library,
        tensorrt_major=backend.op_plugin_major,
        compute_capability=None if device is None else device.compute_capability,
    )
    return library


def _batch_range(bundle: Bundle, batch: tuple[int, int, int] | int | None) -> tuple[int, int, int]:
    wanted = bundle.batch if batch is None else (batch, batch, batch) if isinstance(batch, int) else batch
    fixed = bundle.manifest["input"]["shape"][0]
    if isinstance(fixed, int) and set(wanted) != {fixed}:
        raise RequestError(
            f"The 'batch' parameter must be {fixed}: the bundle was exported with that batch. Got "
            f"{':'.join(map(str, wanted))} instead. Export it with --batch min:opt:max."
        )
    return wanted


def _copy_library(library: OpPluginLibrary, folder: Path) -> None:
    """Keep the library beside the engines that need it: the cache may be emptied, the bundle may move."""
    target = folder / library_name(library)
    if not target.exists() or sha256_file(target) != library.sha256:
        with atomic_path(target) as beside:
            shutil.copyfile(hold_library(library.path, library.sha256), beside)


def _drop_unused_libraries(folder: Path) -> None:
    used = set()
    for path in folder.glob("degree-*.json"):
        with suppress(EngineError):
            sidecar, _ = read_sidecar(path)
            used.add(None if sidecar.op_plugin is None else sidecar.op_plugin.file)
    for library in folder.glob("libtocom_op_plugin-*.so"):
        if library.name not in used:
            library.unlink(missing_ok=True)
