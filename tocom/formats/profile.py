"""The profile: what every degree costs and how right it is, measured on one device.

Reading and writing need the standard library alone. A profile holds for one device, backend, batch, thread count and
bundle; :attr:`Profile.fingerprint` names that combination and is the file's name under ``bundle/profiles/``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tocom.errors import CalibrationError
from tocom.formats.measurements import Accuracy, DegreeProfile, Latency, StateLog, check_count
from tocom.formats.sealed_json import parse_sealed, write_sealed_json
from tocom.formats.typed_json import as_dataclass
from tocom.system.numbers import is_integer

__all__ = [
    "PROFILES_FOLDER",
    "PROFILE_VERSION",
    "Accuracy",
    "DegreeProfile",
    "Latency",
    "Profile",
    "StateLog",
    "find_profiles",
]

PROFILE_VERSION = 1
PROFILES_FOLDER = "profiles"
_MAX_PROFILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Profile:
    """Latency and accuracy per degree on one device.

    Attributes:
        device: What identifies the device: processor or GPU, driver, power mode; names to text.
        backend: Backend that was measured.
        precision: Precision of the engines.
        batch: Images per request while measuring.
        threads: CPU threads of one inference; 0 where the backend has none.
        bundle_fingerprint: sha256 of the bundle's manifest.
        model: timm name of the model.
        degrees: Per degree, ascending.
        interval: What one latency sample spans.
        measured: When and how: ISO time, tocom version, seed, warm-up found.
        device_state: Clocks, temperatures and power mode while it was measured; None where nothing was read.
    """

    device: Mapping[str, str]
    backend: str
    precision: str
    batch: int
    threads: int
    bundle_fingerprint: str
    model: str
    degrees: Mapping[int, DegreeProfile]
    interval: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    device_state: StateLog | None = None

    def __post_init__(self) -> None:
        check_count("batch", self.batch)
        if not is_integer(self.threads, 0):
            raise CalibrationError(f"'threads' must be an integer >= 0. Got {self.threads!r}.")
        if not self.degrees:
            raise CalibrationError("A profile must hold at least one degree. Got none.")
        object.__setattr__(self, "degrees", dict(sorted(self.degrees.items())))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the device, backend, precision, batch, threads and bundle."""
        return fingerprint(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """What a profile holds for; two profiles of equal identity replace each other."""
        return {
            "device": dict(self.device),
            "backend": self.backend,
            "precision": self.precision,
            "batch": self.batch,
            "threads": self.threads,
            "bundle": self.bundle_fingerprint,
        }

    def mismatch(self, identity: Mapping[str, Any]) -> str | None:
        """Return why this profile does not hold for ``identity``, or None when it does."""
        for key, mine in self.identity.items():
            theirs = identity[key]
            if key == "device" and dict(mine) != dict(theirs):
                names = sorted(n for n in {*mine, *theirs} if mine.get(n) != theirs.get(n))
                return "; ".join(f"device {n} is {theirs.get(n)!r}, the profile has {mine.get(n)!r}" for n in names)
            if key != "device" and mine != theirs:
                return f"{key} is {theirs!r}, the profile has {mine!r}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the profile as plain JSON content."""
        content = asdict(self)
        degrees = [{"degree": degree, **entry} for degree, entry in content.pop("degrees").items()]
        return {
            "profile_version": PROFILE_VERSION,
            "fingerprint": self.fingerprint,
            **content,
            "degrees": degrees,
        }

    @classmethod
    def from_json(cls, content: Any, *, where: str = "the profile") -> Profile:
        """Return the profile that ``content`` describes.

        Raises:
            CalibrationError: A key is missing, unknown, of the wrong type or out of range; ``where`` is named.
        """
        version = content.get("profile_version") if isinstance(content, dict) else None
        if type(version) is not int or version != PROFILE_VERSION:
            raise CalibrationError(
                f"{where} has profile version {version!r}, this tocom reads {PROFILE_VERSION}. "
                "Measure it again with 'tocom calibrate'."
            )
        try:
            degrees: dict[int, DegreeProfile] = {}
            for entry in content["degrees"]:
                degree = entry["degree"]
                if not is_integer(degree, 0) or degree in degrees:
                    raise CalibrationError(f"degree {degree!r} is not an integer >= 0, or is twice there.")
                degrees[degree] = as_dataclass(DegreeProfile, {k: v for k, v in entry.items() if k != "degree"})
            around = ("profile_version", "fingerprint", "sha256")
            members = {name: value for name, value in content.items() if name not in around}
            profile = as_dataclass(cls, {**members, "degrees": degrees})
        except CalibrationError as error:
            raise CalibrationError(f"{where}: {error} Measure it again with 'tocom calibrate'.") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CalibrationError(
                f"{where} is not a valid profile ({type(error).__name__}: {error}). "
                "Measure it again with 'tocom calibrate'."
            ) from error
        if content.get("fingerprint") != profile.fingerprint:
            raise CalibrationError(
                f"{where} names the fingerprint {content.get('fingerprint')!r}, its content gives "
                f"{profile.fingerprint!r}: it was changed by hand. Measure it again with 'tocom calibrate'."
            )
        return profile

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Read a profile.

        Raises:
            CalibrationError: The file is missing, no JSON, changed since it was written, or no valid profile.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_PROFILE_BYTES + 1)
        except OSError as error:
            raise CalibrationError(
                f"No profile at {path} ({error.strerror}). Measure one with 'tocom calibrate'."
            ) from error
        if len(data) > _MAX_PROFILE_BYTES:
            raise CalibrationError(f"{path} has more than {_MAX_PROFILE_BYTES} bytes: that is not a profile.")
        try:
            content = parse_sealed(data)
        except ValueError as error:
            raise CalibrationError(f"{path} {error}. Measure it again with 'tocom calibrate'.") from error
        return cls.from_json(content, where=str(path))

    def save(self, bundle_path: Path | str) -> Path:
        """Write the profile atomically to ``bundle_path/profiles/<fingerprint>.json`` and return that path.

        Raises:
            OutputError: The folder cannot be written.
        """
        path = Path(bundle_path) / PROFILES_FOLDER / f"{self.fingerprint}.json"
        write_sealed_json(path, self.to_json())
        return path


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the sha256 of an identity's canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_profiles(bundle_path: Path | str) -> list[Path]:
    """Return the profile files beside a bundle, by name."""
    return sorted((Path(bundle_path) / PROFILES_FOLDER).glob("*.json"))
