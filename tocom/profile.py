"""The profile: measured latency quantiles, and accuracy where known, per degree on one device.

Reading and writing need the standard library alone. A profile holds for one device, backend, batch, thread count and
bundle; :attr:`Profile.fingerprint` names that combination and is the file's name under ``bundle/profiles/``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tocom.errors import CalibrationError
from tocom.files import write_json

__all__ = ["PROFILES_FOLDER", "PROFILE_VERSION", "Accuracy", "DegreeProfile", "Latency", "Profile", "find_profiles"]

PROFILE_VERSION = 1
PROFILES_FOLDER = "profiles"
_MAX_PROFILE_BYTES = 1 << 20
ACCURACY_KINDS = ("top1", "agreement")


@dataclass(frozen=True)
class Latency:
    """Latency of one degree over ``count`` samples, in milliseconds."""

    count: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float

    def __post_init__(self) -> None:
        _check_count("count", self.count)
        quantiles = (self.p50_ms, self.p90_ms, self.p95_ms, self.p99_ms)
        if not all(_is_number(q) and q > 0 for q in quantiles) or list(quantiles) != sorted(quantiles):
            raise CalibrationError(
                f"Latency quantiles must be positive, finite and ascending (p50, p90, p95, p99). Got {quantiles}."
            )


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers of one degree.

    Attributes:
        kind: ``top1`` (against labels), or ``agreement`` (with the answers of the lowest degree).
        value: The share, 0…1.
        count: Images it was measured on.
        low: Lower end of the 95 % Wilson interval.
        high: Upper end of it.
    """

    kind: str
    value: float
    count: int
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.kind not in ACCURACY_KINDS:
            raise CalibrationError(f"Accuracy kind must be one of {', '.join(ACCURACY_KINDS)}. Got {self.kind!r}.")
        _check_count("count", self.count)
        shares = (self.low, self.value, self.high)
        if not all(_is_number(share) for share in shares) or not 0 <= self.low <= self.value <= self.high <= 1:
            raise CalibrationError(f"Accuracy must hold 0 <= low <= value <= high <= 1. Got {shares}.")


@dataclass(frozen=True)
class DegreeProfile:
    """What is known about one degree on one device."""

    latency: Latency
    accuracy: Accuracy | None = None


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
        measured: When and how: ISO time, tocom version, seed, warm-up.
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

    def __post_init__(self) -> None:
        _check_count("batch", self.batch)
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
        return {
            "profile_version": PROFILE_VERSION,
            "fingerprint": self.fingerprint,
            "device": dict(self.device),
            "backend": self.backend,
            "precision": self.precision,
            "batch": self.batch,
            "threads": self.threads,
            "bundle_fingerprint": self.bundle_fingerprint,
            "model": self.model,
            "interval": self.interval,
            "measured": dict(self.measured),
            "degrees": [
                {
                    "degree": degree,
                    "latency": asdict(entry.latency),
                    "accuracy": None if entry.accuracy is None else asdict(entry.accuracy),
                }
                for degree, entry in self.degrees.items()
            ],
        }

    @classmethod
    def from_json(cls, content: Any, *, where: str = "the profile") -> Profile:
        """Return the profile that ``content`` describes.

        Raises:
            CalibrationError: A key is missing, unknown, of the wrong type or out of range; ``where`` is named.
        """
        version = content.get("profile_version") if isinstance(content, dict) else None
        if version != PROFILE_VERSION:
            raise CalibrationError(
                f"{where} has profile version {version!r}, this tocom reads {PROFILE_VERSION}. "
                "Measure it anew with 'tocom calibrate'."
            )
        try:
            degrees: dict[int, DegreeProfile] = {}
            for entry in content["degrees"]:
                accuracy = entry["accuracy"]
                degree = entry["degree"]
                if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0 or degree in degrees:
                    raise CalibrationError(f"degree {degree!r} is no integer >= 0, or is twice there.")
                degrees[degree] = DegreeProfile(
                    Latency(**entry["latency"]), None if accuracy is None else Accuracy(**accuracy)
                )
            texts = {key: _text(content, key) for key in ("backend", "precision", "model", "interval")}
            threads = content["threads"]
            if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
                raise CalibrationError(f"'threads' must be an integer >= 0. Got {threads!r}.")
            profile = cls(
                device={str(key): str(value) for key, value in content["device"].items()},
                batch=content["batch"],
                threads=threads,
                bundle_fingerprint=_text(content, "bundle_fingerprint"),
                degrees=degrees,
                measured=dict(content["measured"]),
                **texts,
            )
        except CalibrationError as error:
            raise CalibrationError(f"{where}: {error} Measure it anew with 'tocom calibrate'.") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(
                f"{where} is no valid profile ({type(error).__name__}: {error}). "
                "Measure it anew with 'tocom calibrate'."
            ) from error
        if content.get("fingerprint") != profile.fingerprint:
            raise CalibrationError(
                f"{where} names the fingerprint {content.get('fingerprint')!r}, its content gives "
                f"{profile.fingerprint!r}: it was changed by hand. Measure it anew with 'tocom calibrate'."
            )
        return profile

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Read a profile.

        Raises:
            CalibrationError: The file is missing, no JSON, or no valid profile.
        """
        path = Path(path)
        try:
            if path.stat().st_size > _MAX_PROFILE_BYTES:
                raise CalibrationError(f"{path} has more than {_MAX_PROFILE_BYTES} bytes: that is no profile.")
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CalibrationError(
                f"No profile at {path} ({error.strerror}). Measure one with 'tocom calibrate'."
            ) from error
        except (ValueError, RecursionError) as error:
            raise CalibrationError(
                f"{path} is no valid JSON ({error}). Measure it anew with 'tocom calibrate'."
            ) from error
        return cls.from_json(content, where=str(path))

    def save(self, bundle_path: Path | str) -> Path:
        """Write the profile atomically to ``bundle_path/profiles/<fingerprint>.json`` and return that path.

        Raises:
            OutputError: The folder cannot be written.
        """
        path = Path(bundle_path) / PROFILES_FOLDER / f"{self.fingerprint}.json"
        write_json(path, self.to_json())
        return path


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the sha256 of an identity's canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_profiles(bundle_path: Path | str) -> list[Path]:
    """Return the profile files beside a bundle, by name."""
    return sorted((Path(bundle_path) / PROFILES_FOLDER).glob("*.json"))


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str) or not value:
        raise CalibrationError(f"{key!r} must be a text. Got {value!r}.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CalibrationError(f"{name!r} must be an integer >= 1. Got {value!r}.")
