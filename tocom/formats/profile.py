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
from tocom.formats.measurements import Accuracy, DegreeProfile, Latency, StateLog
from tocom.formats.schema import check_schema
from tocom.formats.sealed_json import parse_sealed, write_sealed_json
from tocom.formats.typed_json import as_dataclass
from tocom.system.files import read_regular

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
_SCHEMA = json.loads((Path(__file__).parent / "schemas" / "profile-v1.schema.json").read_text(encoding="utf-8"))


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
            check_schema(content, _SCHEMA)
            degrees: dict[int, DegreeProfile] = {}
            for entry in content["degrees"]:
                members = dict(entry)
                if (degree := members.pop("degree")) in degrees:
                    raise CalibrationError(f"degree {degree} is twice there.")
                degrees[degree] = as_dataclass(DegreeProfile, members)
            around = ("profile_version", "fingerprint", "sha256")
            members = {name: value for name, value in content.items() if name not in around}
            profile = as_dataclass(cls, {**members, "degrees": degrees})
        except CalibrationError as error:
            raise CalibrationError(f"{where}: {error} Measure it again with 'tocom calibrate'.") from error
        except ValueError as error:
            raise CalibrationError(
                f"{where} is not a valid profile: {error}. Measure it again with 'tocom calibrate'."
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
            content = parse_sealed(read_regular(path, _MAX_PROFILE_BYTES))
        except OSError as error:
            raise CalibrationError(
                f"No profile at {path} ({error.strerror}). Measure one with 'tocom calibrate'."
            ) from error
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
