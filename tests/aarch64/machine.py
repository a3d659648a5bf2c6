"""An aarch64 machine out of packages alone: Debian's Python and libraries under user-mode emulation, and wheels.

Nothing is installed: apt's lists and packages, unpacked, stand in one folder, with the cross compiler beside them.
The newest ONNX Runtime ends in the emulator while it reads the caches' sizes (1.32.0); 1.23.2 runs.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = "python3.11"
DEBS = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6"),
    *("zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libcrypt1", "libuuid1"),
)
WHEELS = (
    *("numpy==1.26.4", "onnxruntime==1.23.2", "pillow==11.3.0", "typer==0.16.1", "click", "shellingham"),
    *("annotated-doc", "typing-extensions", "rich>=13", "markdown-it-py", "mdurl", "pygments"),
)
# What ONNX Runtime and typer name beside these serves other uses than inference.
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
PROCESSOR = "cortex-a76"  # ARMv8.2, as Orin's Cortex-A78AE; the newest of that line that Debian 12's emulator knows


class NotHere(Exception):
    """What the machine is made of cannot be had; the message is one line."""


class Machine:
    """The machine in a folder; made once, and used again while its list of packages is the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root, self._tools, self._site = folder / "root", folder / "tools", folder / "site"
        self._code = folder / "code"
        wanted = "\n".join((*DEBS, *WHEELS))
        made = folder / "made-of.txt"
        if not made.exists() or made.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            for each in (self._root, self._tools, self._site):
                each.mkdir(parents=True)
            self._unpack_debs()
            self._unpack_wheels()
            made.write_text(wanted)
        self._link_code()

    def run(self, *arguments: str | Path, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run the machine's Python; return what it printed.

        Raises:
            AssertionError: It ended with a status other than 0, or took too long.
        """
        emulator = self._tools / "usr/bin/qemu-aarch64-static"
        command = [emulator, "-cpu", PROCESSOR, "-L", self._root, self._root / "usr/bin" / PYTHON, *arguments]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TOCOM_CACHE": str(self.folder / "cache"),
            "PYTHONPATH": os.pathsep.join(map(str, (self._code, self._site))),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        # The machine's packages are Debian's: its Python must not see this one's.
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{arguments}: not done after {timeout_s:.0f} s") from error
        assert done.returncode == 0, (
            f"{arguments}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
        return done

    def compile(self, sources: Sequence[Path], include: Path, output: Path) -> int:
        """Compile a shared library for the machine; return how many fused multiply-adds stand in it."""
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", f"-I{include}"]
        self._tool("aarch64-linux-gnu-g++", f"--sysroot={self._tools}", *flags, *sources, "-o", output)
        code = self._tool("aarch64-linux-gnu-objdump", "-d", output)
        return sum(name in ("fmadd", "fmla", "fmsub", "fnmsub") for name in code.split())

    def _tool(self, name: str, *arguments: str | Path) -> str:
        libraries = str(self._tools / "usr/lib/x86_64-linux-gnu")
        command = [self._tools / "usr/bin" / name, *arguments]
        environment = {"PATH": f"{self._tools}/usr/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": libraries}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def _unpack_debs(self) -> None:
        lists, archives = self.folder / "apt-lists", self.folder / "apt-archives"
        for each in (lists, archives):
            (each / "partial").mkdir(parents=True)
        settings = {
            "Dir::State::lists": lists,
            "Dir::Cache::archives": archives,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Debug::NoLocking": "1",
            "APT::Sandbox::User": "root",
        }
        apt = ["apt-get", "-qq", "-o", "APT::Architectures::=amd64", "-o", "APT::Architectures::=arm64"]
        for name, value in settings.items():
            apt += ["-o", f"{name}={value}"]
        # Without the system's own status every package of the compiler's is fetched, those that are installed too.
        compiler = ["install", "-y", "--no-install-recommends", "--download-only", "g++-aarch64-linux-gnu"]
        fetch(*apt, "update")
        fetch(*apt, "download", "qemu-user-static", *(f"{name}:arm64" for name in DEBS), at=archives)
        fetch(*apt, "-o", "Dir::State::status=/dev/null", *compiler)
        for package in sorted(archives.glob("*.deb")):
            target = self._root if package.name.endswith("_arm64.deb") else self._tools
            fetch("dpkg", "-x", package, target)

    def _unpack_wheels(self) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip += ["--only-binary", ":all:", "--target", str(self._site), "--implementation", "cp"]
        for platform in PLATFORMS:
            pip += ["--platform", platform]
        fetch(*pip, "--python-version", PYTHON.removeprefix("python"), *WHEELS)

    def _link_code(self) -> None:
        """Put the repository's four parts together as they are installed, with what pip knows of them."""
        shutil.rmtree(self._code, ignore_errors=True)
        (self._code / "tocom").mkdir(parents=True)
        for path in (*(ROOT / "tocom").iterdir(), *(ROOT / part for part in ("export", "runtime", "calibration"))):
            (self._code / "tocom" / path.name).symlink_to(path)
        metadata = importlib.metadata.distribution("tocom").read_text("METADATA")
        known = self._code / f"tocom-{importlib.metadata.version('tocom')}.dist-info"
        known.mkdir()
        (known / "METADATA").write_text(metadata or "", encoding="utf-8")


def fetch(*command: str | Path, at: Path | None = None) -> None:
    """Run a command of apt, dpkg or pip.

    Raises:
        NotHere: It is missing or fails.
    """
    try:
        done = subprocess.run(command, cwd=at, capture_output=True, text=True)
    except OSError as error:
        raise NotHere(
            f"{command[0]} is needed and cannot be started ({error.strerror}); this is for Debian 12."
        ) from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("W")]
        what = " ".join(map(str, command[-3:]))
        raise NotHere(f"{Path(command[0]).name} failed at '{what}': {said[-1] if said else 'it said nothing'}")
