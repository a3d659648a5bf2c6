"""Faults of the field: from the command line, as a user meets them, and a table of all their kinds with their tests."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_bundles import SmallBundle, write_small_bundle

from tocom.errors import BundleError
from tocom.formats.bundle import Bundle

TESTS = Path(__file__).resolve().parents[1]
# What is known to happen to users, and the tests of each kind.
KINDS = {
    "a cold cache, several processes and threads": (
        "faults/test_cold_cache.py::test_processes",
        "faults/test_cold_cache.py::test_threads",
    ),
    "a signal's handler that calls the runtime": (
        "faults/test_process_ends.py::test_a_signal_handler_may_call_the_runtime",
        "faults/test_process_ends.py::test_ctrl_c_ends_an_inference_with_its_code",
    ),
    "a process that ends while it works": (
        "faults/test_process_ends.py::test_an_end_under_load",
        "faults/test_process_ends.py::test_a_hundred_ends",
    ),
    "a process that is forked, pools, copies": (
        "faults/test_process_ends.py::test_a_forked_process_is_told",
        "faults/test_process_ends.py::test_pools",
        "faults/test_process_ends.py::test_a_runtime_is_not_pickled",
    ),
    "preprocessing re-implemented in part": (
        "compression/test_timm_preprocessing.py::test_every_pretrained_config",
        "runtime/test_runtime_preprocess.py::test_the_fast_way_is_within_one_grey_level",
    ),
    "what a file says about itself": (
        "runtime/test_runtime_images.py::test_a_photograph_is_turned_as_its_exif_says",
        "runtime/test_runtime_images.py::test_ranges_that_a_file_tells_are_scaled",
        "runtime/test_runtime_images.py::test_ranges_that_nobody_knows_are_refused",
        "runtime/test_runtime_images.py::test_other_modes_become_rgb",
    ),
    "labels as people write them": (
        "formats/test_relabelling.py::test_labels_as_people_write_them",
        "runtime/test_runtime_images.py::test_names_are_compared_as_people_see_them",
    ),
    "folders: links, hidden files, classes that are not the model's": (
        "runtime/test_runtime_images.py::test_links_are_followed_and_hidden_files_are_not_images",
        "runtime/test_runtime_images.py::test_no_class_index_is_guessed",
    ),
    "which of several weights": (
        "compression/test_loading.py::test_which_weights_are_taken_is_said_and_can_be_chosen",
    ),
    "checkpoints as people have them": (
        "compression/test_checkpoints.py::test_every_kind",
        "compression/test_loading.py::test_positions_are_resampled_as_timm_does",
        "compression/test_loading.py::test_bad_input",
    ),
    "models handed to export": (
        "compression/test_handed_models.py::test_wrappers_are_taken_off",
        "compression/test_handed_models.py::test_half_becomes_float32_and_the_callers_stays",
        "compression/test_handed_models.py::test_what_cannot_be_exported_is_refused_first",
    ),
    "one image of many that cannot be read": (
        "runtime/test_runtime_cli.py::test_one_unreadable_image_leaves_the_answers_to_the_others",
    ),
    "an image that takes gigabytes": (
        "runtime/test_runtime_images.py::test_an_image_that_is_a_line_takes_no_gigabytes",
    ),
    "batches that are too small": (
        "faults/test_field.py::test_a_bundle_with_six_images_for_batches_of_four",
        "runtime/test_runtime_preprocess.py::test_a_batch_that_is_too_small_is_filled_up",
    ),
    "mounted volumes, '.', file systems that sync no folders": (
        "system/test_files.py::test_a_mounted_volume_is_filled",
        "system/test_files.py::test_a_file_system_that_syncs_no_folders",
        "system/test_files.py::test_a_file_system_without_locks_works_and_removes_nothing",
    ),
    "a cache that cannot be had": (
        "faults/test_cold_cache.py::test_no_cache_is_no_error",
        "faults/test_cold_cache.py::test_a_cache_that_may_only_be_read_serves",
    ),
    "a bundle that may only be read": ("faults/test_field.py::test_figures_that_were_measured_are_shown",),
    "a bundle laid out as links": ("faults/test_field.py::test_a_bundle_laid_out_as_links",),
    "names and terminals": ("faults/test_field.py::test_names_of_any_bytes_on_terminals_of_any_encoding",),
    "containers": (
        "system/test_cgroups.py::test_the_cpu_quota",
        "system/test_cgroups.py::test_the_memory_that_is_left",
        "training/test_image_readers.py::test_little_shared_memory_is_told_before_the_work",
    ),
    "Ctrl-C and SIGTERM in a training": ("training/test_training_resume.py::test_interrupts_keep_the_steps",),
    "telemetry of what we bring along": (
        "faults/test_cold_cache.py::test_what_onnxruntime_reports_is_the_users_choice",
    ),
    "caches that only grow": (
        "runtime/backends/test_runtime_weight_cache.py::test_caches_that_were_not_used_for_longest_go",
        "runtime/backends/test_runtime_weight_cache.py::test_degrees_join_one_cache_and_those_in_it_stay",
    ),
    "many cameras": (
        "runtime/test_runtime_streams.py::test_a_fast_source_leaves_a_slow_one_its_turn",
        "runtime/test_runtime_streams.py::test_one_that_raises_or_stalls_leaves_the_others_going",
        "runtime/test_runtime_streams.py::test_frames_of_changing_size_and_broken_ones",
        "runtime/test_runtime_streams.py::test_more_than_the_device_can_serve_is_said",
    ),
}

UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


def tocom(*words: object, encoding: str = "utf-8", wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    command = [
        *wrapper,
        sys.executable,
        "-c",
        "from tocom.cli import main; main()",
        *map(os.fspath, map(str_of, words)),
    ]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


def str_of(word: object) -> str | bytes:
    return word if isinstance(word, bytes) else str(word)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_tests(kind: str) -> None:
    for each in KINDS[kind]:
        file, name = each.split("::")
        defined = {
            node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in defined, each


@pytest.mark.parametrize("encoding", [pytest.param("utf-8", marks=pytest.mark.slow), "latin-1"])
def test_names_of_any_bytes_on_terminals_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    place = os.fsencode(tmp_path) + b"/\xe9[bold]:smile:"
    bundle = write_small_bundle(Path(os.fsdecode(place)) / "bundle", labels=["Ω", "[b]", "c", "d", "e"])
    images = Path(os.fsdecode(place)) / "images"
    images.mkdir()
    for name in (b"caf\xe9.png", b"[red]x.png", b":smile:.png", "Ω.png".encode()):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(os.fsencode(images) + b"/" + name, "PNG")
    done = tocom("run", os.fsencode(bundle.path), "--images", os.fsencode(images), encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert b"[red]x.png" in done.stdout
    assert b":smile:.png" in done.stdout
    assert done.stdout.count(b"degree 0") == 4
    shown = tocom("inspect", os.fsencode(bundle.path), encoding=encoding)
    assert shown.returncode == 0, shown.stderr
    assert b"[bold]" in b"".join(shown.stdout.split())
    missing = tocom("run", "/no[/x]where", "--images", os.fsencode(images), encoding=encoding)
    assert (missing.returncode, missing.stderr.count(b"\n")) == (1, 1)
    assert b"/no[/x]where" in missing.stderr


@pytest.mark.fault("a bundle that cannot be written to, calibrated", outcome="told first; the figures are shown")
def test_figures_that_were_measured_are_shown(tmp_path: Path) -> None:
    wrapper: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to be like other users")
        wrapper = UNPRIVILEGED
    bundle: SmallBundle = write_small_bundle(tmp_path / "bundle")
    bundle.path.chmod(0o555)
    done = tocom("calibrate", bundle.path, "--samples", 3, wrapper=wrapper)
    asked = tocom("calibrate", bundle.path, "--samples", 3, "--report", wrapper=wrapper)
    bundle.path.chmod(0o755)
    assert done.returncode == 1
    assert b"p95" in done.stdout
    said = done.stderr.decode()
    assert said.index("the figures are shown, not saved") < said.index("warm") if "warm" in said else True
    assert said.rstrip().splitlines()[-1].startswith("error: OutputError: Cannot write")
    assert (asked.returncode, asked.stdout) == (1, b"")


def test_answers_that_go_to_a_full_disk(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    command = [sys.executable, "-c", "from tocom.cli import main; main()", "inspect", str(bundle.path)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left on device. Free some space there." in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.fault("standard input, output or errors that the caller closed", outcome="the exit code; no traceback")
def test_streams_that_the_caller_closed(tmp_path: Path, closed: str) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    command = [sys.executable, "-c", "from tocom.cli import main; main()", "inspect", str(bundle.path)]
    shell = f'exec "$@" {closed}'
    done = subprocess.run(["sh", "-c", shell, "sh", *command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bundle_with_six_images_for_batches_of_four(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", batch=(4, 4, 4), labels=list("abcde"))
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng(index).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    (tmp_path / "images" / "a" / "._0.png").write_bytes(b"of another system")
    measured = tocom("calibrate", bundle.path, "--images", tmp_path / "images", "--samples", 3, "--json")
    assert measured.returncode == 0, measured.stderr
    assert {entry["accuracy"]["count"] for entry in json.loads(measured.stdout)["degrees"]} == {6}
    done = tocom("run", bundle.path, "--images", tmp_path / "images", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["answers"]) == 6


@pytest.mark.parametrize("linked", ["all", "weights"])
def test_a_bundle_laid_out_as_links(tmp_path: Path, linked: str) -> None:
    bundle = write_small_bundle(tmp_path / "blobs")
    snapshot = tmp_path / "a snapshot"
    snapshot.mkdir()
    for file in bundle.path.iterdir():
        if linked == "all" or file.name == "weights.bin":
            (snapshot / file.name).symlink_to(file)
        else:
            shutil.copy(file, snapshot)
    with pytest.raises(BundleError, match=r"is a link out of the bundle.* cp -rL '.*a snapshot' COPY"):
        Bundle(snapshot)
    subprocess.run(["cp", "-rL", snapshot, tmp_path / "COPY"], check=True)
    Bundle(tmp_path / "COPY")
