"""The report: its content, and how a real browser shows it, from a file, on a phone, light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_bundles import SmallBundle, write_small_bundle

from tocom.calibration import block_times, calibrate, suggest_degrees, write_report
from tocom.calibration.latency.block_times import BlockTimes, split_events
from tocom.errors import BundleError, CalibrationError
from tocom.formats.bundle import Bundle
from tocom.formats.measurements import Accuracy, Energy, PrecisionCandidate, PrecisionComparison, StateLog
from tocom.formats.profile import Profile

FIGURES = {"accuracy", "staircase", "precision", "feature-gap", "work", "device"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
GAP = {
    4: {"without_compensator": 0.2, "with_compensator": 0.1},
    8: {"without_compensator": 0.4, "with_compensator": 0.2},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SmallBundle:
    return write_small_bundle(tmp_path_factory.mktemp("report") / "bundle")


@pytest.fixture(scope="module")
def profile(bundle: SmallBundle) -> Profile:
    """A measured profile, with everything that this machine cannot tell put in."""
    measured = calibrate(bundle.path, samples=8)
    degrees = {}
    for degree, entry in measured.degrees.items():
        value = 0.9 - degree / 100
        accuracy = Accuracy("top1", value, 100, value - 0.05, value + 0.05)
        fp32 = PrecisionCandidate(entry.latency.p50_ms, entry.latency.p95_ms, 2**20, accuracy)
        int8 = PrecisionCandidate(entry.latency.p50_ms, entry.latency.p95_ms, 2**18, accuracy, "below the floor <b>")
        comparison = PrecisionComparison({"fp32": fp32, "int8": int8}, "fp32", "faster")
        energy = Energy(12.5, 10, "scripted")
        degrees[degree] = replace(entry, accuracy=accuracy, energy=energy, precisions=comparison)
    readings = tuple({"seconds": float(s), "cpu_clock_mhz": 2000.0 + s, "gpu_temperature_c": 50.0} for s in range(5))
    state = StateLog(readings[0], readings[-1], readings, ("power_mode changed from '<b>' to '15W' after 2.0 s",))
    device = {**measured.device, "processor": "<script>alert(1)</script> $x_"}
    return replace(measured, degrees=degrees, device_state=state, device=device)


@pytest.fixture(scope="module")
def page(bundle: SmallBundle, profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = Bundle(bundle.path)
    blocks = block_times(opened, list(opened.degrees), threads=1, runs=2)
    out = tmp_path_factory.mktemp("out")
    return write_report(profile, opened, out, suggestion=suggest_degrees(profile), blocks=blocks, feature_gap=GAP)


def test_a_changed_model_is_not_profiled(tmp_path: Path) -> None:
    changed = write_small_bundle(tmp_path / "bundle")
    content = bytearray((changed.path / "degree-04.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (changed.path / "degree-04.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"degree-04\.onnx has sha256"):
        block_times(Bundle(changed.path, verify=False), [4], threads=1)


def test_one_file_that_needs_no_network_and_a_png_per_figure(page: Path, profile: Profile) -> None:
    text = page.read_text()
    assert len(text.encode()) < 5e6
    # Only namespaces may look like addresses; nothing is loaded from anywhere, and nothing runs.
    assert not re.search(r"""(?:src|href)=["'](?!#|data:,)""", re.sub(r'xlink:href="#', '"', text))
    assert "@import" not in text
    assert "url(http" not in text
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x_" in text
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    for name in FIGURES:
        assert (page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for words in ("Doubtful: power_mode changed", "12.5", "below the floor", "Random weights", "use this: faster"):
        assert words in text
    for degree, entry in profile.degrees.items():
        assert f"<td>{degree}</td>" in text
        assert f"{entry.latency.p50_ms:.2f}" in text


def test_what_was_not_measured_is_said(bundle: SmallBundle, tmp_path: Path) -> None:
    plain = calibrate(bundle.path, samples=2, save=False)
    bare = replace(plain, device_state=None)
    text = write_report(bare, Bundle(bundle.path), tmp_path).read_text()
    for words in ("Accuracy: no images", "Energy: this device", "Feature gap:", "Time per block:", "only fp32"):
        assert words in text
    assert "reference answers, degree 4" in text
    assert "right, largest difference" in text
    assert "{&#39;" not in text  # no dictionary as Python writes it
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "staircase.png"}


def test_a_missing_library_is_one_line(
    bundle: SmallBundle, profile: Profile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(CalibrationError, match=r"needs jinja2\. Install what it needs: pip install 'tocom\[report\]'"):
        write_report(profile, Bundle(bundle.path), tmp_path)


def _events(*ops: str, runs: int = 3) -> list[dict[str, Any]]:
    events, now = [], 0
    for run in range(runs):
        events.append({"cat": "Session", "name": "model_run", "ts": now, "dur": 9})
        for op in ops:
            now += 1
            slow = 50 if run == 1 else 1
            events.append(
                {
                    "cat": "Node",
                    "name": f"{op}_{now}_kernel_time",
                    "ts": now,
                    "dur": 1000 * slow,
                    "args": {"op_name": op},
                }
            )
        now += 1
    return events[::-1]


def test_blocks_are_told_apart_by_their_norms() -> None:
    block = ("LayerNormalization", "MatMul", "TopK", "LayerNormalization", "MatMul", "Gelu")
    found = split_events(4, _events("Conv", *block, *block, "LayerNormalization", "Gemm"), blocks=2)
    assert found.whole
    assert found.blocks == ({"attention": 2.0, "matching and merging": 1.0, "MLP": 3.0},) * 2
    assert found.outside_ms == 3.0
    assert found.totals["MLP"] == 6.0
    before = split_events(4, _events("Conv", "LayerNormalization", *block, "LayerNormalization"), blocks=1)
    assert (before.outside_ms, before.blocks[0]["MLP"]) == (3.0, 3.0)
    strange = split_events(4, _events(*block, *block, *block), blocks=1)
    assert (strange.whole, len(strange.blocks)) == (False, 1)
    assert split_events(4, [], blocks=1).whole is False


def test_the_profilers_own_time_is_taken_off_every_op_alike() -> None:
    block = ("LayerNormalization", "MatMul", "TopK", "LayerNormalization", "MatMul", "Gelu")
    events = _events("Conv", *block)  # seven ops of 1 ms; the fastest run without the profiler takes 3.5 ms
    for event in events:
        if event.get("args", {}).get("op_name") == "MatMul":
            event["dur"] *= 3
    found = split_events(4, events, blocks=1, plain_ms=(11.0, 7.5, 7.5))  # 11 ms with the profiler: 0.5 ms an op
    assert found.blocks[0] == pytest.approx({"attention": 3.0, "matching and merging": 0.5, "MLP": 3.5})
    assert found.sum_ms == pytest.approx(7.5)
    # A device that ran slower without the profiler: nothing is taken off, and nothing is scaled up.
    assert split_events(4, events, blocks=1, plain_ms=(20.0,)).sum_ms == pytest.approx(11.0)
    assert found.scaled(15.0).totals == pytest.approx({kind: 2 * ms for kind, ms in found.totals.items()})


def test_blocks_are_measured_again_where_the_device_changed_its_speed(bundle: SmallBundle) -> None:
    """No device is a thousand times faster than it was: three tries, and the nearest one is returned."""
    opened, begun = Bundle(bundle.path), []

    def tries(p50_ms: dict[int, float] | None) -> int:
        begun.clear()
        found = block_times(
            opened, [0, 4], threads=1, runs=2, p50_ms=p50_ms, progress=lambda _, done, __: begun.append(done == 0)
        )
        assert [each.degree for each in found] == [0, 4]
        return sum(begun)

    assert tries(None) == 1
    assert tries({0: 1e-3, 4: 1e-3}) == 3


def test_the_chart_of_blocks_stands_on_the_pages_own_latency(
    bundle: SmallBundle, profile: Profile, tmp_path: Path
) -> None:
    half = [
        BlockTimes(degree, ({"attention": entry.latency.p50_ms / 2, "matching and merging": 0.0, "MLP": 0.0},), 0.0)
        for degree, entry in profile.degrees.items()
    ]
    text = write_report(profile, Bundle(bundle.path), tmp_path, blocks=half).read_text()
    first = next(iter(profile.degrees))
    assert f"Doubtful: while profiling the device took another time than p50, at degree {first} (50%)" in text
    assert text.count("Doubtful: while profiling") == 2  # beside both charts of it
    assert f"the ops' sum is this share of p50: 50% at degree {first}" in html.unescape(text)
    whole = [entry.scaled(profile.degrees[entry.degree].latency.p50_ms) for entry in half]
    assert all(entry.sum_ms == pytest.approx(profile.degrees[entry.degree].latency.p50_ms) for entry in whole)
    assert "while profiling" not in write_report(profile, Bundle(bundle.path), tmp_path, blocks=whole).read_text()


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no browser: install one (apt-get install chromium) to see the report as a user does")
    return found


PROBE = """<script>
window.addEventListener("load", () => {
  const style = getComputedStyle(document.body);
  const svgs = [...document.querySelectorAll("figure svg")];
  const found = {
    figures: svgs.map(svg => [svg.parentElement.id, svg.clientWidth, svg.clientHeight]),
    ink: svgs.map(svg => getComputedStyle(svg.querySelector("text")).fill),
    page: [document.documentElement.scrollWidth, window.innerWidth],
    colours: [style.color, style.backgroundColor],
    ids: [...document.querySelectorAll("[id]")].map(element => element.id),
    loaded: performance.getEntriesByType("resource").map(entry => entry.name),
    rows: document.querySelectorAll("#degrees tr").length,
  };
  const box = document.createElement("pre"); box.id = "probe"; box.textContent = JSON.stringify(found);
  document.body.append(box);
});
</script></body>"""


def look(browser: str, page: Path, tmp_path: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Open the page in the browser and return what the probe saw, and what the browser logged."""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", PROBE))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
        *options, probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    match = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    return json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), done.stderr


@pytest.mark.parametrize(("scheme", "dark"), [("1", False), ("0", True)])
def test_a_browser_shows_every_figure_on_a_phone_without_a_complaint(
    browser: str, page: Path, tmp_path: Path, scheme: str, dark: bool
) -> None:
    options = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=390,844")
    found, log = look(browser, page, tmp_path, *options)
    assert "CONSOLE" not in log
    assert {name for name, _, _ in found["figures"]} == FIGURES
    assert all(width > 200 and height > 100 for _, width, height in found["figures"])
    assert found["page"][0] <= found["page"][1], "the page scrolls sideways"
    assert len(found["ids"]) == len(set(found["ids"])), "two elements share an id"
    assert found["loaded"] == []
    assert found["rows"] == 4
    text, back = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in found["colours"])
    assert (text > back) == dark
    assert set(found["ink"]) == {found["colours"][0]}, "the figures' text does not take the page's colour"


def test_the_probe_sees_a_console_error(browser: str, page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("<body>", "<body><script>console.error('told')</script>"))
    _, log = look(browser, broken, tmp_path)
    assert "CONSOLE" in log
