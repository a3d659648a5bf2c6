"""Write docs/reliability.md from the tests, one row per ``@pytest.mark.fault``, and from the committed soak.

    python tests/faults/reliability_page.py

The tests are read, not run: what stands in the page is what the suites run. A test compares the page with this.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
FIELD = Path(__file__).with_name("test_field.py")
SOAK = TESTS.parent / "benchmarks" / "results" / "soak.json"

# The first pattern that fits decides.
SECTIONS = (
    ("Serving", ("faults/test_serving*", "faults/test_memory*", "runtime/test_*", "runtime/policy/*",
                 "runtime/memory/*")),
    ("Engines, GPUs and the op plugin", ("export/engines/*", "export/op_plugin/*", "faults/test_probe*",
                                         "runtime/backends/tensorrt/*")),
    ("The disk, and processes that die", ("faults/test_no_space*", "faults/test_kills*", "system/*", "export/*",
                                          "training/*", "calibration/*", "runtime/*cache*")),
    ("Files that are damaged or hostile", ("*",)),
)  # fmt: skip

_HEAD = """\
# Reliability

What can go wrong, what must follow, and the test that proves it. Made by `python tests/faults/reliability_page.py` from
the marker `fault` of the tests; a test compares this page with what the script writes. Do not edit it by hand.

`make test` runs every test named here: those of a full disk where it may mount a tmpfs, those of TensorRT-RTX where it
is installed. Those marked *long* run in `make test-slow` too, with more repetitions.
`make fuzz` feeds damaged manifests, profiles, alignments and compensators to their readers for ten minutes; `make soak`
serves for an hour under random budgets, faults and reloads and writes `benchmarks/results/soak.json`.

**A device that falls silent** cannot be interrupted: a call into a driver returns when it returns. So `Runtime.open`
takes `timeout_s`: inferences then run on a thread of the runtime's own, and a request that is not answered in time ends
in EngineError, as do all further ones until the device answers again or `reload()` opened it again. On a GPU the limit
is 60 s unless another is given. On the CPU there is none unless one is given: there the caller's own thread computes,
and a thread in between costs about 30 µs a request.

**Parts of dead processes.** Outputs are written beside their path, under a hidden name ending in `.tocom-part` that
its writer holds a lock on. The lock dies with the process, so the next run for the same output knows the part for
stale and removes it. An existing folder is exchanged for the new one in one step where the file system can.

**Known limit.** ONNX Runtime 1.31 may crash once memory ended while it loads or runs a session. So an engine is tried
only where three copies of its weights, its activations and a margin fit into the free memory and, under `ulimit -v`,
into the free address space; a degree that does not fit is left out with a warning. Memory that other programs take
afterwards is beyond that check; `memory_limit_bytes` keeps room, and `tocom verify --probe` loads in a process of its
own.
"""

_KINDS = """
## What users report, by kind
What people who deploy Vision Transformers and serve models meet, and the tests of each kind; a test sees that all of
them are there. `faults/test_field_commands.py` types each into a shell as a user would (in `make test-slow`).

| kind | tests |
| --- | --- |
"""


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        name: What goes wrong.
        outcome: What must follow.
        test: File below ``tests/`` and function.
        long: A longer variant runs in the long suite.
        default: A variant runs in the default suite.
    """

    name: str
    outcome: str
    test: str
    long: bool
    default: bool

    @property
    def section(self) -> str:
        """The title that it stands under."""
        path = self.test.split("::")[0]
        return next(title for title, patterns in SECTIONS if any(fnmatch.fnmatch(path, p) for p in patterns))


@cache
def faults() -> tuple[Fault, ...]:
    """Return every fault that a test is marked with, in the order of the files."""
    return tuple(fault for path in sorted(TESTS.rglob("test_*.py")) for fault in _faults_of(path))


def page() -> str:
    """Return the page."""
    found = faults()
    parts = [_HEAD, _soak(json.loads(SOAK.read_text(encoding="utf-8")))]
    for title, _ in SECTIONS:
        rows = [
            f"| {fault.name} | {fault.outcome} | `{fault.test}`{_when(fault)} |"
            for fault in found
            if fault.section == title
        ]
        parts.append(
            f"\n## {title}\n| fault | must follow | proved by |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
        )
    return "".join([*parts, _KINDS, *(f"| {kind} | {_joined(tests)} |\n" for kind, tests in kinds().items())])


@cache
def kinds() -> dict[str, tuple[str, ...]]:
    """Return the kinds of faults that users report, each with its tests, as ``test_field.py`` lists them."""
    (table,) = (
        statement.value
        for statement in ast.parse(FIELD.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "KINDS"
    )
    return dict(ast.literal_eval(table))


def _joined(tests: tuple[str, ...]) -> str:
    return "<br>".join(f"`{test}`" for test in tests)


def _soak(result: dict[str, Any]) -> str:
    counts, after, machine = result["counts"], result["after_warm_up"], result["machine"]
    faults = sum(count for name, count in counts.items() if name not in ("answers", "opened", "reload"))
    verdict = "passes" if all(result["passes"].values()) else "fails"
    text = (
        f"**The committed soak** {verdict}: {result['minutes']:g} minutes on {machine['cores']} cores of "
        f"{machine['processor']}, load average {machine['load_average_at_the_end']}, ONNX Runtime "
        f"{machine['onnxruntime']}. {counts['answers']} answers, {result['wrong_answers']} wrong; {faults} faults and "
        f"{counts['reload']} reloads, {result['unexpected']} unexpected errors. After the warm-up resident memory grew "
        f"by {after['rss_growth']:.2%} (highest sample {after['highest_rss_over_first']:.2%} above), open files by "
        f"{after['more_files']:g}, threads by {after['more_threads']:g}. Budgets were drawn from ones that nothing "
        f"meets to ones that every degree meets: {result['missed']} of {result['budgeted']} were missed, which says "
        "nothing of the policy."
    )
    return f"\n{textwrap.fill(text, 120)}\n"


def _when(fault: Fault) -> str:
    if not fault.long:
        return ""
    return ", *long*" if fault.default else ", *long* only"


def _faults_of(path: Path) -> Iterator[Fault]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    shared = {  # decorators that a module names once
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or not function.name.startswith("test_"):
            continue
        decorators = [shared.get(d.id, d) if isinstance(d, ast.Name) else d for d in function.decorator_list]
        slow = any(ast.unparse(decorator) == "pytest.mark.slow" for decorator in decorators)
        varied = any("pytest.mark.slow" in ast.unparse(decorator) for decorator in decorators)
        for decorator in decorators:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
                (name,) = (ast.literal_eval(argument) for argument in decorator.args)
                (outcome,) = (ast.literal_eval(keyword.value) for keyword in decorator.keywords)
                test = f"{path.relative_to(TESTS)}::{function.name}"
                yield Fault(name, outcome, test, long=varied, default=not slow)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
