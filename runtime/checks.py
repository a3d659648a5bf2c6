"""Checks of a request's arguments: each failure is one readable line, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import EngineError, RequestError
from tocom.runtime.backends.arrays import DeviceImages
from tocom.runtime.policy.choice import GOALS
from tocom.system.numbers import is_integer, is_number

__all__ = [
    "check_budget",
    "check_deadline",
    "check_finite",
    "check_goal",
    "check_open_options",
    "check_outputs",
    "check_rate",
    "check_timeout",
    "unfit_images",
]


_MOST_THREADS = 1024
_NUMBERS = (float, int, np.floating, np.integer)
_FLOAT32 = np.dtype("<f4")


def _real(value: Any) -> float | None:
    """Return the number, or None where it is not one, or an integer beyond all floats."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def check_budget(budget_ms: Any) -> float:
    """Return the budget in milliseconds.

    Raises:
        RequestError: It is not a number, NaN, zero or negative. Infinity is allowed: it means no limit.
    """
    value = _real(budget_ms)
    if value is not None and value > 0:
        return value
    raise RequestError(
        f"The 'budget_ms' parameter must be a number of milliseconds greater than 0. Got {budget_ms!r} instead."
    )


def check_deadline(deadline: Any, budget_ms: Any = None) -> float:
    """Return the deadline in seconds of ``time.monotonic()``; one that has passed is allowed.

    Raises:
        RequestError: It is not a finite number, or a budget is given too.
    """
    if budget_ms is not None:
        raise RequestError(f"Give 'budget_ms' or 'deadline', not both. Got {budget_ms!r} and {deadline!r}.")
    value = _real(deadline)
    if value is not None and math.isfinite(value):
        return value
    raise RequestError(
        f"The 'deadline' parameter must be a time in seconds, as time.monotonic() gives it. Got {deadline!r} instead."
    )


def check_rate(fps: Any) -> float | None:
    """Return frames per second, or None.

    Raises:
        RequestError: It is not a finite number greater than 0.
    """
    rate = _real(fps)
    if fps is None or (rate is not None and 0 < rate < math.inf):
        return rate
    raise RequestError(f"The 'fps' parameter must be a number greater than 0. Got {fps!r} instead.")


def check_goal(goal: Any, max_loss: Any) -> float:
    """Return the largest loss of accuracy that a goal allows.

    Raises:
        RequestError: The goal is not known, or ``max_loss`` is out of range, missing, or given with another goal.
    """
    if goal not in GOALS:
        raise RequestError(f"The 'goal' parameter must be one of {', '.join(GOALS)}. Got {goal!r} instead.")
    if goal != "energy" and max_loss is None:
        return 0.0
    if goal != "energy" or not is_number(max_loss) or not 0 <= max_loss < 1:
        raise RequestError(
            "The 'max_loss' parameter belongs to goal='energy': the share of accuracy that it may cost, such as 0.01. "
            f"Got {max_loss!r} with goal={goal!r}."
        )
    return float(max_loss)


def check_open_options(**options: Any) -> None:
    """Check options that are None or a positive integer; ``threads`` within what no machine falls silent under.

    Raises:
        RequestError: One is neither.
    """
    for name, value in options.items():
        most = _MOST_THREADS if name == "threads" else None
        if value is not None and not is_integer(value, 1, most):
            allowed = ">= 1" if most is None else f"from 1 to {most}"
            raise RequestError(f"The {name!r} parameter must be an integer {allowed}. Got {value!r} instead.")


def check_timeout(timeout_s: Any) -> None:
    """Check the seconds that a silent device is waited for.

    Raises:
        RequestError: It is neither ``auto``, None, nor a number greater than 0.
    """
    if timeout_s is not None and timeout_s != "auto" and not (is_number(timeout_s) and 0 < timeout_s < 1e6):
        raise RequestError(
            f"The 'timeout_s' parameter must be a number of seconds greater than 0, None or 'auto'. Got {timeout_s!r}."
        )


def check_outputs(outputs: Mapping[str, NDArray[Any]], images: Any, degree: int) -> None:
    """Check that every value is finite: a class can be read from NaN like from any other answer.

    Raises:
        RequestError: The images are not finite, and so nothing that is computed from them is.
        EngineError: The images are finite or lie in GPU memory, and a value is not.
    """
    for name, value in outputs.items():
        # Of float32, which is nearly always given, a look at bytes is a tenth of the time: not finite means an exponent
        # of ones, and a last byte of 0x7f or 0xff. So do values beyond 1.7e38, rarely.
        last_bytes = value.tobytes()[3::4] if value.dtype == _FLOAT32 else b"\xff"
        if (0x7F in last_bytes or 0xFF in last_bytes) and not np.isfinite(value).all():
            if isinstance(images, np.ndarray):
                check_finite(images, "the answer to them is not")
            bad = int(value.size - np.isfinite(value).sum())
            raise EngineError(
                f"Degree {degree} answered {bad} of {value.size} values of {name!r} with NaN or infinity; the answer "
                "is dropped. At half precision export with --precision bf16 or fp32, else check the device's memory."
            )


def unfit_images(
    images: Any, dtype: np.dtype[Any], image_shape: tuple[int, int, int], batch_range: tuple[int, int, int]
) -> RequestError:
    """Return the error that says why the engines cannot take images.

    Args:
        images: What the caller gave.
        dtype: Type of the images: float32, or uint8 where the graph normalises.
        image_shape: Channels, height, width that the engines take.
        batch_range: Smallest, optimal and largest batch.
    """
    smallest, _, largest = batch_range
    if isinstance(images, np.ndarray):
        smallest = 1
        if images.dtype != dtype:
            todo = (
                "Give the pixels: this bundle's graph normalises them."
                if dtype == np.uint8
                else "Normalise as the manifest's input entry says, as Runtime.preprocess() does, then "
                "astype('float32')."
            )
            return RequestError(f"The 'images' parameter must be {dtype}. Got {images.dtype} instead. {todo}")
    elif not isinstance(images, DeviceImages):
        hint = " Move it to the CPU first: images.cpu().numpy()." if hasattr(images, "cpu") else ""
        return RequestError(
            f"The 'images' parameter must be a numpy array in host memory, {dtype} [batch, channels, height, width]. "
            f"Got {type(images).__module__}.{type(images).__name__} instead.{hint}"
        )
    shape = images.shape
    if len(shape) != 4 or shape[1:] != image_shape:
        return RequestError(_shape_message(shape, image_shape))
    allowed = f"{smallest}…{largest}" if smallest != largest else str(smallest)
    return RequestError(
        f"The 'images' parameter must hold a batch of {allowed} (the bundle's range). Got {shape[0]} instead. "
        "Split the batch, or export with a wider one: tocom export --batch MIN:OPT:MAX."
    )


def check_finite(images: Any, why: str) -> None:
    """Check that images in host memory are finite; costs a pass over them.

    Raises:
        RequestError: They are not, or lie in GPU memory.
    """
    if isinstance(images, DeviceImages):
        raise RequestError("The 'check_finite' parameter checks host memory only. Got images in GPU memory.")
    bad = int(images.size - np.isfinite(images).sum())
    if bad:
        raise RequestError(f"The 'images' parameter must be finite ({why}). Got {bad} NaN or infinite values.")


def _shape_message(shape: tuple[int, ...], image_shape: tuple[int, int, int]) -> str:
    channels, height, width = image_shape
    expected = f"[batch, {channels}, {height}, {width}]"
    message = f"The 'images' parameter must have the shape {expected}. Got {list(shape)} instead."
    if shape[-3:] == image_shape and len(shape) == 3:
        return f"{message} Add the batch dimension: images[None]."
    if shape[-3:] == (height, width, channels):
        return f"{message} This looks like height-width-channels: transpose(0, 3, 1, 2) gives the layout."
    return message
