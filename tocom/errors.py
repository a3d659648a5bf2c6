"""Every error that tocom raises on purpose.

TocomError
├── BundleError (ValueError)         a bundle is missing, corrupt, tampered with, or of another version
├── ModelError (ValueError)          a model is unknown or unsupported, or its checkpoint does not fit
├── CompensatorError (ValueError)    a compensator does not fit the model, or a degree is out of its range
├── AlignmentError (ValueError)      an alignment cannot be fitted or read, or is of something else
├── DegreeError (ValueError)         a degree, method or schedule that the model cannot run at
├── DataError (ValueError)           images or labels that cannot be read or used
├── TrainingError (RuntimeError)     training cannot go on (non-finite loss, nothing to remove)
├── ExportError (RuntimeError)       an ONNX file cannot be written, or does not match the model
├── EngineError (RuntimeError)       an engine cannot be built, loaded or run on this device
├── BudgetError (TimeoutError)       no degree meets the budget, and the caller asked to raise
├── CalibrationError (RuntimeError)  a measurement cannot be taken or used
├── RequestError (ValueError)        an argument of a call is out of its range
├── DependencyError (ImportError)    a package is missing, too old, or broken
└── OutputError (OSError)            an output cannot be written

A message says what is wrong, where, what was expected, what was got, and what to do. Each class also derives from
the builtin that fits, so callers who know nothing of tocom still catch the right thing.
"""

from __future__ import annotations

__all__ = [
    "AlignmentError",
    "BudgetError",
    "BundleError",
    "CalibrationError",
    "CompensatorError",
    "DataError",
    "DegreeError",
    "DependencyError",
    "EngineError",
    "ExportError",
    "ModelError",
    "OutputError",
    "RequestError",
    "TocomError",
    "TrainingError",
]


_MOST_CHARACTERS = 2000


class TocomError(Exception):
    """Base of all errors that tocom raises on purpose.

    A message may quote what a file holds. Whatever that is, it stays one line of bounded length, and no line break or
    escape sequence in it reaches a log or a terminal.
    """

    def __str__(self) -> str:
        """Return the message in one printable line."""
        text = super().__str__()
        text = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class BundleError(TocomError, ValueError):
    """Raised when a bundle is missing, corrupt, tampered with, or of another version."""


class ModelError(TocomError, ValueError):
    """Raised when a model is unknown or unsupported, or a checkpoint does not fit it."""


class CompensatorError(TocomError, ValueError):
    """Raised when a compensator does not fit a model, or a degree is out of its range."""


class AlignmentError(TocomError, ValueError):
    """Raised when an alignment cannot be fitted or read, or is not of what it is to run with."""


class DegreeError(TocomError, ValueError):
    """Raised when a model cannot run at a degree, method or schedule."""


class DataError(TocomError, ValueError):
    """Raised when images or labels cannot be read or used."""


class TrainingError(TocomError, RuntimeError):
    """Raised when training cannot go on."""


class ExportError(TocomError, RuntimeError):
    """Raised when an ONNX file cannot be written, or does not compute what the model computes."""


class EngineError(TocomError, RuntimeError):
    """Raised when an engine cannot be built, loaded or run on this device."""


class BudgetError(TocomError, TimeoutError):
    """Raised when no degree meets the budget and ``on_infeasible="raise"``."""


class CalibrationError(TocomError, RuntimeError):
    """Raised when a measurement cannot be taken, or must not be used here."""


class RequestError(TocomError, ValueError):
    """Raised when an argument of a call is out of its range."""


class DependencyError(TocomError, ImportError):
    """Raised when a package that tocom needs is missing, too old, or cannot be imported."""


class OutputError(TocomError, OSError):
    """Raised when an output cannot be written.

    Attributes:
        unsaved: What was to be written and took long to get, such as the profile of a calibration; None otherwise.
    """

    unsaved: object = None


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error without its full stop, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def one_line(error: BaseException) -> str:
    """Return all of another library's error in one line, cut after 400 characters."""
    return " ".join(str(error).split())[:400] or type(error).__name__
