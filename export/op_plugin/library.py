"""The op plugin library: compiled once per content, compiler, headers and architectures, and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tocom.errors import EngineError
from tocom.export.op_plugin.toolchain import Headers, Toolkit, find_headers, find_toolkit, select_architectures
from tocom.system.cache import cache_folder
from tocom.system.files import atomic_path, scratch_folder, sha256_file, write_json
from tocom.system.locks import exclusive

__all__ = ["LIBRARY_NAME", "OpPluginLibrary", "build_library", "check_library", "read_library"]

LIBRARY_NAME = "libtocom_op_plugin.so"
SOURCES = Path(__file__).parent / "native"
# The longest first, so that two jobs end at about the same time.
_UNITS = (
    "token_merge/match_kernel.cu",
    "token_merge/token_merge_kernel.cu",
    "token_prune/token_prune_kernel.cu",
    "entry_points.cpp",
    "token_merge/token_merge_plugin.cpp",
    "token_prune/token_prune_plugin.cpp",
    "common/errors.cpp",
)
_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra")
# Each compiler takes about 300 MB; a Jetson shares its memory with the GPU.
_JOBS = 2
_INFO = re.compile(rb"tocom-op-plugin;version=(\d+);tensorrt=([\d.]+);cudart=(\d+);architectures=([\d,]+);")
_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}


@dataclass(frozen=True)
class OpPluginLibrary:
    """A compiled op plugin library, as its file describes itself.

    Attributes:
        path: The shared library.
        sha256: sha256 of its bytes; part of every engine's key.
        version: Version of the ops.
        tensorrt: Version of the headers it was compiled with.
        cuda: Version of the CUDA runtime in it, such as (13, 0).
        architectures: Compute capabilities times ten that it holds code for.
        machine: ``x86_64`` or ``aarch64``.
        build_seconds: What compiling took now; 0 when it was cached or given.
    """

    path: Path
    sha256: str
    version: int
    tensorrt: tuple[int, ...]
    cuda: tuple[int, int]
    architectures: tuple[int, ...]
    machine: str
    build_seconds: float = 0.0


def build_library(
    *,
    architectures: Sequence[int] | None = None,
    tensorrt_include: Path | str | None = None,
    nvcc: Path | str | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> OpPluginLibrary:
    """Return the op plugin library for these tools, from the cache or compiled now.

    Args:
        architectures: Compute capabilities times ten; None takes the defaults that the toolkit knows. Code for newer
            ones comes from the PTX of the newest.
        tensorrt_include: Folder of TensorRT's headers; None searches.
        nvcc: The compiler driver; None searches.
        cache: Folder to keep libraries in; None takes the user's cache.
        say: Called with what was found and what is done, one line each.

    Raises:
        EngineError: No nvcc, no headers, or the compiler failed; the message holds its last lines.
        RequestError: The toolkit does not know an architecture.
        OutputError: The cache cannot be written.
    """
    tell = say or (lambda line: None)
    toolkit = find_toolkit(nvcc)
    tell(f"nvcc {toolkit.version[0]}.{toolkit.version[1]}: {toolkit.nvcc} ({toolkit.found})")
    headers = find_headers(tensorrt_include)
    tell(f"TensorRT headers {'.'.join(map(str, headers.version))}: {headers.include} ({headers.found})")
    wanted = select_architectures(toolkit, architectures)
    tell(f"architectures: {', '.join(map(str, wanted))} and PTX for {wanted[-1]}")

    folder = (cache or cache_folder()) / "op-plugin" / _key(toolkit, headers, wanted)[:20]
    path = folder / LIBRARY_NAME
    with exclusive(folder.with_suffix(".lock"), on_wait=lambda: tell("waiting for another build of the same library")):
        if (cached := _cached(path)) is not None:
            tell(f"cached: {path}")
            return cached
        begin = time.perf_counter()
        with atomic_path(path) as beside:
            _compile(toolkit, headers, wanted, beside)
        path.chmod(0o755)
        write_json(path.with_suffix(".json"), {"sha256": sha256_file(path)})
        seconds = time.perf_counter() - begin
        tell(f"compiled in {seconds:.1f} s: {path}")
    return read_library(path, build_seconds=seconds)


def read_library(path: Path | str, *, build_seconds: float = 0.0) -> OpPluginLibrary:
    """Return what an op plugin library says of itself, without loading it.

    Raises:
        EngineError: The file is missing, is not a shared library, or is not tocom's.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"The op plugin library {path} cannot be read ({error.strerror}). Build one with 'tocom plugins build'."
        ) from error
    found = _INFO.search(content)
    if content[:4] != b"\x7fELF" or len(content) < 64 or found is None:
        raise EngineError(f"{path} is not an op plugin library of tocom. Build one with 'tocom plugins build'.")
    # Loading a library that is cut off ends the process with a bus error.
    sections, size, count = (*struct.unpack_from("<Q", content, 40), *struct.unpack_from("<HH", content, 58))
    if sections + size * count > len(content):
        raise EngineError(f"The op plugin library {path} is cut off. Build it again: 'tocom plugins build'.")
    cuda = int(found[3])
    machine = struct.unpack_from("<H", content, 18)[0]
    return OpPluginLibrary(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        version=int(found[1]),
        tensorrt=tuple(int(part) for part in found[2].decode().split(".")),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        architectures=tuple(int(part) for part in found[4].decode().split(",")),
        machine=_MACHINES.get(machine, f"ELF machine {machine}"),
        build_seconds=build_seconds,
    )


def check_library(
    library: OpPluginLibrary, *, tensorrt_major: int, compute_capability: tuple[int, int] | None = None
) -> None:
    """Refuse a library that cannot serve here.

    Args:
        library: The library.
        tensorrt_major: Major version whose headers it must be compiled with.
        compute_capability: Compute capability of the device; None when there is none to check against.

    Raises:
        EngineError: It is for another processor, TensorRT major version or GPU.
    """
    rebuild = "Build it here: 'tocom plugins build'."
    if library.machine != platform.machine():
        raise EngineError(
            f"The op plugin library {library.path} is for {library.machine}, this is {platform.machine()}. {rebuild}"
        )
    if library.tensorrt[0] != tensorrt_major:
        raise EngineError(
            f"The op plugin library {library.path} was compiled with the headers of TensorRT "
            f"{'.'.join(map(str, library.tensorrt))}; here it must be {tensorrt_major}.x. Build it with matching "
            "headers: 'tocom plugins build --tensorrt-include FOLDER'."
        )
    if compute_capability is None:
        return
    major, minor = compute_capability
    # Machine code runs on the same major version from its minor version on; PTX of the newest runs on all newer ones.
    native = any(a // 10 == major and a % 10 <= minor for a in library.architectures)
    if not native and library.architectures[-1] > major * 10 + minor:
        raise EngineError(
            f"The op plugin library {library.path} holds code for {', '.join(map(str, library.architectures))}, "
            f"this GPU has compute capability {major}.{minor}. "
            f"Build it for this GPU: 'tocom plugins build --arch {major}{minor}'."
        )


def _key(toolkit: Toolkit, headers: Headers, architectures: Sequence[int]) -> str:
    """Return the sha256 of everything that decides the library's bytes."""
    digest = hashlib.sha256()
    facts = [toolkit.build, str(headers.version), str(list(architectures)), platform.machine(), str(_FLAGS), _host()]
    for fact in facts:
        digest.update(fact.encode() + b"\0")
    for source in sorted(SOURCES.rglob("*")):
        if source.suffix in {".h", ".cpp", ".cu", ".map"} and "testing" not in source.parts:
            digest.update(f"{source.relative_to(SOURCES)}\0{sha256_file(source)}\0".encode())
    return digest.hexdigest()


def _host() -> str:
    compiler = shutil.which("g++")
    if compiler is None:
        raise EngineError("No g++ found; nvcc needs a host compiler. Install one, such as Debian's package g++.")
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]


def _cached(path: Path) -> OpPluginLibrary | None:
    """Return the library at ``path`` when it is whole: its hash is written down after it."""
    try:
        expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
        library = read_library(path)
    except (OSError, ValueError, KeyError, EngineError):
        return None
    return library if library.sha256 == expected else None


def _compile(toolkit: Toolkit, headers: Headers, architectures: Sequence[int], output: Path) -> None:
    # The compiler searches /usr/include anyway; naming it again would put it before the C++ library's own folders.
    folders = [folder for folder in (headers.include, *toolkit.include) if folder != Path("/usr/include")]
    includes = [f"-I{SOURCES}", *(f"-isystem={folder}" for folder in folders)]
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    targets.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    define = f'-DTOCOM_ARCHITECTURES="{",".join(map(str, architectures))}"'
    with scratch_folder("tocom-op-plugin") as scratch:
        objects = [scratch / f"{Path(unit).stem}.o" for unit in _UNITS]

        def compile_unit(unit: str, target: Path) -> None:
            command = [str(toolkit.nvcc), *_FLAGS, *includes, define, "-c", str(SOURCES / unit), "-o", str(target)]
            _run([*command, *targets] if unit.endswith(".cu") else command, unit)

        with ThreadPoolExecutor(max_workers=_JOBS) as pool:
            for done in [pool.submit(compile_unit, *pair) for pair in zip(_UNITS, objects, strict=True)]:
                done.result()
        link = [str(toolkit.nvcc), "-shared", "-cudart=static", *(f"-L{folder}" for folder in toolkit.libraries)]
        link += [f"-Xlinker=--version-script={SOURCES / 'exports.map'}", "-Xlinker=-z,defs", *map(str, objects)]
        _run([*link, "-o", str(output)], "the link")


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines()
        raise EngineError(
            f"The op plugin library cannot be compiled: {what} ended with status {done.returncode}. "
            f"nvcc said: {' | '.join(lines[-8:]) or 'nothing'}. Engines can be built without it: --lowering native."
        )
