"""Engines as they lie on disk: as TensorRT wrote them, or compact.

TensorRT-RTX keeps the CUDA source of each of its own kernels in an engine: some 130 kB each, nearly all of it the same
text again, and a compressed model has kernels of its own for every token count. A compact engine is a ZIP file whose
members, in their order, are the engine: what deflates well is deflated, the rest (weights) is stored as it is.
``unzip -p degree-08.engine.zip > degree-08.engine`` gives back what TensorRT wrote, bit by bit.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

from tocom.errors import EngineError

__all__ = ["SELF_REGISTER", "engine_name", "pack_engine", "unpack_engine"]

# Where this environment variable is set, the op plugin library registers its ops as soon as it is opened: for programs
# that open it and do no more. TensorRT's own load_library would then find them there already, and refuse the library.
SELF_REGISTER = "TOCOM_OP_PLUGIN_REGISTER"

_BLOCK_BYTES = 1 << 16
# The start of a block tells whether it is text or numbers; float weights deflate to nine tenths at best.
_SAMPLE_BYTES = 1 << 12
_WORTH_IT = 0.6
_READ_BYTES = 1 << 20
# A member's time is part of the file: always the same one, so that equal engines are equal files.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def engine_name(degree: int, *, compact: bool = False) -> str:
    """Return the file name of a degree's engine, such as ``degree-08.engine`` or ``degree-08.engine.zip``."""
    return f"degree-{degree:02d}.engine{'.zip' if compact else ''}"


def pack_engine(content: memoryview, path: Path) -> None:
    """Write an engine compactly.

    Args:
        content: What TensorRT serialized.
        path: The file to write.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for index, begin in enumerate(range(0, len(content), _BLOCK_BYTES)):
            block = content[begin : begin + _BLOCK_BYTES]
            sample = block[:_SAMPLE_BYTES]
            member = zipfile.ZipInfo(f"{index:05d}", _NO_TIME)
            deflates = len(zlib.compress(sample, 1)) < _WORTH_IT * len(sample)
            member.compress_type = zipfile.ZIP_DEFLATED if deflates else zipfile.ZIP_STORED
            archive.writestr(member, block)


def unpack_engine(packed: bytes, size: int, path: Path) -> bytearray:
    """Return the engine in a compact file.

    Args:
        packed: The file's bytes.
        size: Bytes that the engine must have.
        path: Where they come from, for errors.

    Raises:
        EngineError: It is not such a file, or the engine in it has another size.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            members = archive.infolist()
            # Before anything is allocated: a few bytes can claim to be very many.
            got = sum(member.file_size for member in members)
            if got != size:
                raise EngineError(
                    f"The engine {path} holds {got} bytes, its sidecar says {size}: it was changed. Build it again."
                )
            content = bytearray(size)
            done = 0
            for member in members:
                with archive.open(member) as stream:
                    while part := stream.read(_READ_BYTES):
                        content[done : done + len(part)] = part
                        done += len(part)
    except EngineError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise EngineError(f"The engine {path} cannot be unpacked ({error}). Build it again.") from error
    if done != size:
        raise EngineError(f"The engine {path} unpacks to {done} of {size} bytes: it was cut off. Build it again.")
    return content
