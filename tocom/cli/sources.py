"""Where ``tocom run`` takes its images from: folders, video files, streams and cameras."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tocom.errors import DataError, RequestError
from tocom.system.threads import on_a_thread

__all__ = ["Source", "folder_source", "video_source"]


@dataclass(frozen=True)
class Source:
    """Images one after another.

    Attributes:
        name: The folder, file, address or number, fit to be shown.
        items: Names of images, each with what the runtime's ``preprocess`` takes.
        is_camera: It goes on by itself: the newest image counts, what was not taken in time is lost.
        fps: The rate at which a file was recorded; None where it has none.
    """

    name: str
    items: Iterator[tuple[str, Any]]
    is_camera: bool = False
    fps: float | None = None


def folder_source(images: Path) -> Source:
    """Return the images of a folder, or one image.

    Raises:
        DataError: There are none.
    """
    from tocom.images import image_files

    return Source(str(images), ((str(path), path) for path in image_files(images)))


def video_source(address: str, *, shown_in_names: bool = False) -> Source:
    """Return the frames of a video.

    Args:
        address: A video file, a stream's address, or a camera's number.
        shown_in_names: Name the video in each frame's name.

    Raises:
        RequestError: OpenCV is not installed.
        DataError: It cannot be opened.
    """
    try:
        import cv2
    except ImportError as error:
        raise RequestError("--video needs the package opencv-python. Install it: pip install opencv-python.") from error
    # A camera's number; longer ones, and digits such as ², can only be names.
    is_number = re.fullmatch("[0-9]{1,9}", address) is not None
    # OpenCV waits for an address that does not answer, and for a pipe that nobody writes, and lets no signal through.
    capture = on_a_thread(lambda: cv2.VideoCapture(int(address) if is_number else address), "tocom-open-video").result()
    name = _without_secrets(address)
    if not capture.isOpened():
        raise DataError(f"Cannot open the video {name!r}. Give a file, a stream's address, or a camera's number.")
    is_file = Path(address).is_file()
    fps = capture.get(cv2.CAP_PROP_FPS) if is_file else 0
    prefix = f"{name} " if shown_in_names else ""
    return Source(name, _frames(capture, prefix), is_camera=not is_file, fps=fps if 0 < fps < 1e4 else None)


def _frames(capture: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    index = 0
    try:
        while True:
            there, pixels = capture.read()
            if not there:
                return
            yield f"{prefix}frame {index}", pixels
            index += 1
    finally:
        capture.release()


def _without_secrets(address: str) -> str:
    """Return a stream's address as it may be shown: cameras take name and password before the host or in the query."""
    if "://" not in address:
        return address
    return re.sub(r"[?#].*", "?…", re.sub(r"//.*@", "//…@", address))
