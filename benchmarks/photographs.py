"""Photographs from Debian's packages: more of them, and of more things, than the wheels hold.

``other_photographs()`` fetches wallpapers and cut-out objects with ``apt-get download`` and installs nothing. The
objects are put before the wallpapers. What comes of it is kept in ``build/photographs``.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageOps

from tocom.system.files import atomic_folder

FOLDER = Path(__file__).resolve().parents[1] / "build" / "photographs"
# Package → the part of it that holds photographs; the others of the wallpaper packages hold drawings.
WALLPAPERS = {
    "lomiri-wallpapers-16.04": "usr/share/backgrounds",
    "lomiri-wallpapers-20.04": "usr/share/backgrounds",
    "mate-backgrounds": "usr/share/backgrounds/mate/nature",
    "ukui-wallpapers": "usr/share/backgrounds",
}
OBJECTS = {"tuxpaint-stamps-default": "usr/share/tuxpaint/stamps"}
SHORTER_SIDE = 512  # pixels; a training view is 224 of them, or fewer made larger
LEAST_SIDE = 96  # smaller objects are blurred at 224
LEAST_COLOURS = 1 << 13  # drawings and letters have fewer


def other_photographs() -> list[Image.Image]:
    """Return them, in the order of their names.

    Raises:
        RuntimeError: apt fetched none: no Debian, or no network.
    """
    if not FOLDER.exists():
        with tempfile.TemporaryDirectory() as below, atomic_folder(FOLDER) as beside:
            wallpapers = list(_photographs(WALLPAPERS, Path(below)))
            objects = _photographs(OBJECTS, Path(below))
            before = (_before(each, behind) for each, behind in zip(objects, cycle(wallpapers), strict=False))
            for index, picture in enumerate([*wallpapers, *before]):
                picture.convert("RGB").save(beside / f"{index:04}.jpg", quality=95)
    return [Image.open(path) for path in sorted(FOLDER.iterdir())]


def _photographs(packages: dict[str, str], below: Path) -> Iterator[Image.Image]:
    """Yield what packages hold, with its transparency, the shorter side 512 pixels at most."""
    done = subprocess.run(["apt-get", "-qq", "download", *packages], cwd=below, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"apt-get cannot download {', '.join(packages)}: {done.stderr.strip()}")
    for name, inside in packages.items():
        (package,) = below.glob(f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "-x", package.name, name], cwd=below, check=True)
        for path in sorted((below / name / inside).rglob("*")):
            if path.suffix.lower() not in {".jpg", ".jpeg", ".png"} or path.is_symlink():
                continue
            with Image.open(path) as opened:
                picture = opened.convert("RGBA")
            factor = SHORTER_SIDE / min(picture.size)
            if factor < 1:
                picture = picture.resize([round(length * factor) for length in picture.size], Image.Resampling.LANCZOS)
            if min(picture.size) >= LEAST_SIDE and picture.getcolors(LEAST_COLOURS) is None:
                yield picture


def _before(thing: Image.Image, behind: Image.Image) -> Image.Image:
    return Image.alpha_composite(ImageOps.fit(behind, thing.size), thing)
