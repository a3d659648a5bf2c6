"""Bad input on the command line: one readable line on stderr, exit code 1, nothing left behind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from cli_calls import MODEL, Answer, Tocom
from safetensors.torch import load_file, save_file
from small_vits import busy_compensator, small_vit

from tocom import load_model
from tocom.cli.options import parse_batch, parse_degrees
from tocom.errors import RequestError


@pytest.fixture(scope="module")
def material(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files to go wrong with."""
    folder = tmp_path_factory.mktemp("material")
    model = load_model(MODEL, weights=checkpoint, image_size=64).model
    made: dict[str, Path] = {"checkpoint": checkpoint, "pictures": pictures, "none": folder / "none"}
    for name, of in {
        "four_groups": busy_compensator(model, groups=4),
        "for_pruning": busy_compensator(model, groups=4, method="prune"),
        "wide": busy_compensator(small_vit(depth=9)),
        "shallow": busy_compensator(small_vit(embed_dim=96)),
    }.items():
        made[name] = folder / f"{name}.safetensors"
        of.save(made[name])
    state = load_file(checkpoint)
    made["missing"], made["unexpected"] = folder / "missing.safetensors", folder / "unexpected.safetensors"
    save_file({key: value for key, value in state.items() if key != "norm.bias"}, made["missing"])
    save_file({**state, "fc.weight": torch.ones(2)}, made["unexpected"])
    made["text"] = folder / "notes.txt"
    made["text"].write_text("no images here")
    made["broken"] = folder / "broken"
    shutil.copytree(pictures, made["broken"])
    (made["broken"] / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    made["empty"] = folder / "empty"
    made["empty"].mkdir()
    for place, label in enumerate(("bolt", "nut", "washer")):
        (folder / "classes" / label).mkdir(parents=True)
        for index in (2 * place, 2 * place + 1):
            shutil.copy(pictures / f"{index}.png", folder / "classes" / label)
    made["classes"] = folder / "classes"
    made["labels"] = folder / "labels.txt"
    made["labels"].write_text("one\ntwo\n")
    return made


EXPORT = "export --model test_vit3 --weights {checkpoint} --image-size 64 --degrees 0,4 --out {out}/bundle"
TRAIN = "train --model test_vit3 --weights {checkpoint} --image-size 64 --images {pictures} --out {out}/c.safetensors"
EVALUATE = "evaluate --model test_vit3 --weights {checkpoint} --image-size 64 --images {classes} --degrees 4"
BAD = {
    "unknown model": (f"{EXPORT} --model vit_smal", "ModelError: .*timm model name. Got 'vit_smal'"),
    "unsupported model": (f"{EXPORT} --model test_resnet --weights random --image-size 160", "ModelError"),
    "degree beyond the cap": (f"{EXPORT} --degrees 0,9", r"DegreeError: .*integer from 0 to 8 for \d+ tokens.* Got 9"),
    "negative degree": (f"{EXPORT} --degrees=-1", "DegreeError: .*Got -1"),
    "degrees no numbers": (
        f"{EXPORT} --degrees 0,four",
        r"RequestError: .*\(0,4,8\) or first:last:step.* Got '0,four'",
    ),
    "degrees empty": (f"{EXPORT} --degrees=", "RequestError: .*'degrees' option"),
    "degrees without step": (f"{EXPORT} --degrees 0:4", "RequestError: .*'degrees' option"),
    "degrees with step 0": (f"{EXPORT} --degrees 0:4:0", "RequestError: .*'degrees' option"),
    "degrees backwards": (f"{EXPORT} --degrees 4:0:4", "RequestError: .*'degrees' option"),
    "batch no number": (f"{EXPORT} --batch many", "RequestError: .*'batch' option must be N or min:opt:max"),
    "batch of two": (f"{EXPORT} --batch 1:2", "RequestError: .*'batch' option"),
    "batch of four": (f"{EXPORT} --batch 1:2:3:4", "RequestError: .*'batch' option"),
    "batch 0": (f"{EXPORT} --batch 0", "ExportError: .*each at least 1"),
    "batch descending": (f"{EXPORT} --batch 4:2:1", "ExportError: .*ascending"),
    "precision": (f"{EXPORT} --precision fp8", "RequestError: .*Got 'fp8'"),
    "method": (f"{EXPORT} --method drop", "RequestError: .*Got 'drop'"),
    "fuse without prune": (f"{EXPORT} --fuse", "DegreeError: .*'fuse' parameter belongs to method 'prune'"),
    "beyond the groups": (
        f"{EXPORT} --degrees 0,6 --compensator {{four_groups}}",
        "CompensatorError: .*reaches degrees 0 to 4. Got degree 6",
    ),
    "another width": (f"{EXPORT} --compensator {{wide}}", "CompensatorError: .*has channels 64, the model .*has 96"),
    "another depth": (f"{EXPORT} --compensator {{shallow}}", "CompensatorError: .*has depth 3, the model .*has 9"),
    "another method": (
        f"{EXPORT} --compensator {{for_pruning}}",
        "CompensatorError: .*trained for method 'prune', asked for is 'merge'",
    ),
    "no compensator": (f"{EXPORT} --compensator {{none}}", "CompensatorError: .*Cannot read the compensator"),
    "compensator of text": (f"{EXPORT} --compensator {{text}}", "CompensatorError: .*Cannot read the compensator"),
    "scale NaN": (f"{EXPORT} --compensator {{four_groups}} --scale nan", "CompensatorError: .*finite"),
    "missing keys": (f"{EXPORT} --weights {{missing}}", "ModelError: .*does not fit test_vit3: missing norm.bias"),
    "unexpected keys": (f"{EXPORT} --weights {{unexpected}}", "ModelError: .*unexpected fc.weight"),
    "an image size that the patch does not divide": (
        f"{EXPORT} --image-size 90",
        "ModelError: .*multiple of the patch, 16",
    ),
    "no checkpoint": (f"{EXPORT} --weights {{none}}", "ModelError: .*does not exist"),
    "checkpoint of text": (f"{EXPORT} --weights {{text}}", "ModelError: .*Cannot read the checkpoint"),
    "no folder of images": (f"{EXPORT} --check-images {{none}}", "DataError: .*No image folder"),
    "unreadable image": (f"{EXPORT} --check-images {{broken}}", r"DataError: .*Cannot read the image .*2\.png"),
    "no image": (f"{EXPORT} --check-images {{empty}}", "DataError: .*holds no image"),
    "too few labels": (f"{EXPORT} --labels {{labels}}", "ExportError: .*must name 3 classes.* Got 2"),
    "no labels": (f"{EXPORT} --labels {{none}}", "DataError: .*Cannot read the labels"),
    "unwritable folder": (f"{EXPORT} --out {{text}}/bundle", "OutputError: .*Cannot write"),
    "file in the way": (f"{EXPORT} --out {{text}}", "OutputError: .*a file of that name is there"),
    "folder in use": (f"{EXPORT} --out {{broken}}", "OutputError: .*not empty.*--overwrite"),
    "train beyond the cap": (f"{TRAIN} --groups 9", "RequestError: .*'groups' parameter must be at most 8"),
    "train on nothing": (f"{TRAIN} --images {{empty}}", "DataError: .*holds no image"),
    "train on one image": (f"{TRAIN} --images {{pictures}}/0.png --groups 4", "DataError: .*at least 2 images"),
    "train 0 steps": (f"{TRAIN} --steps 0", "RequestError: .*'steps' parameter"),
    "train into a file": (f"{TRAIN} --out {{text}}/c.safetensors --groups 4", "OutputError: .*Cannot write"),
    "evaluate, no such loss": (f"{EVALUATE} --max-loss-points nan", "RequestError: .*'--max-loss-points' option"),
    "evaluate, another method": (
        f"{EVALUATE} --compensator {{for_pruning}} --method merge",
        "RequestError: .*is for --method prune. Got 'merge'",
    ),
    "evaluate, what families have no use for": (
        f"{EVALUATE} --schedules --align --answers {{out}}/answers.csv",
        "RequestError: .*Leave out --align, --answers",
    ),
    "evaluate, a profile without families": (f"{EVALUATE} --profiled {{none}}", "RequestError: .*belongs to --sched"),
    "evaluate, answers into a file": (f"{EVALUATE} --answers {{text}}/answers.csv", "OutputError: .*Cannot write"),
    "evaluate, features that are not finite": (
        f"{EVALUATE} --compensator {{four_groups}} --scale 1e30 --json",
        "ModelError: .*At degree 4, scale 1e.30, those of 6 of 6 images are not",
    ),
    "evaluate, the source degree alone": (
        f"{EVALUATE} --degrees 0 --held-out-share 0.5",
        "RequestError: .*another deg",
    ),
    "inspect nothing": ("inspect {none}", "RequestError: .*does not exist"),
    "inspect a folder of images": ("inspect {pictures}", "BundleError: .*No bundle at"),
    "inspect text": ("inspect {text}", "RequestError: .*Got .*notes.txt instead"),
    "inspect a checkpoint": ("inspect {checkpoint}", "CompensatorError: .*has format None"),
    "run without a bundle": ("run {none} --images {pictures}", "BundleError: .*No bundle at"),
    "budget 0": ("run {none} --images {pictures} --budget-ms 0", "RequestError: .*budget"),
    "budget NaN": ("run {none} --images {pictures} --budget-ms nan", "RequestError: .*budget"),
    "calibrate without a bundle": ("calibrate {none}", "BundleError: .*No bundle at"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_readable_line(tocom: Tocom, material: dict[str, Path], tmp_path: Path, kind: str) -> None:
    command, message = BAD[kind]
    before = sorted(material["text"].parent.rglob("*"))
    done: Answer = tocom(*command.format(**material, out=tmp_path / "out").split())
    assert done.code == 1, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    *progress, last = done.err.splitlines()
    assert not any("rror" in line for line in progress)
    assert last.startswith("error: ")
    assert len(last) < 900, "nobody reads that"
    assert re.search(message, last), last
    assert [path for path in tmp_path.rglob("*") if path.name != "out"] == []
    assert sorted(material["text"].parent.rglob("*")) == before


def test_without_a_network_pretrained_is_one_line(
    tocom: Tocom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    done = tocom("export", "--model", MODEL, "--degrees", "0", "--out", tmp_path / "bundle")
    assert done.code == 1
    assert done.err.startswith("error: ModelError: Cannot load pretrained weights of test_vit3")
    assert done.err.count("\n") == 1
    assert "--weights FILE" in done.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("export",), "Missing option"), (("exprot",), "No such command"), (("run", "--budget", "3"), "No such option")],
)
def test_wrong_usage_exits_with_2(tocom: Tocom, arguments: tuple[str, ...], told: str) -> None:
    done = tocom(*arguments)
    assert done.code == 2
    assert told in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0,4,8", [0, 4, 8]),
        ("0:16:4", [0, 4, 8, 12, 16]),
        ("3:9:4", [3, 7]),
        ("5", [5]),
        (" 1, 2", [1, 2]),
        ("4,0,4", [4, 0]),
    ],
)
def test_degrees(text: str, want: list[int]) -> None:
    assert parse_degrees(text) == want


@pytest.mark.parametrize("text", ["", ",", "1,,2", "a", "1:2", "1:2:3:4", "1:8:0", "1.5", "0:8:-", "8:0:4"])
def test_no_degrees(text: str) -> None:
    with pytest.raises(RequestError, match="'degrees' option must be numbers"):
        parse_degrees(text)


def test_batches() -> None:
    assert parse_batch("4") == 4
    assert parse_batch("1:2:4") == (1, 2, 4)
    for text in ("", "a", "1:2", "1:2:3:4", "1:b:3", "1.0"):
        with pytest.raises(RequestError, match="'batch' option must be N or min:opt:max"):
            parse_batch(text)


NO_MODEL = ("--model", "no_such_model", "--out", "out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "missing", "--degrees", "x"), "'degrees' option"),
        (("build", "missing", "--degrees", "x"), "'degrees' option"),
        (("build", "missing", "--batch", "x"), "'batch' option"),
        (("build", "missing", "--timeout-s", "x"), "'timeout-s' option"),
        (("pack", "missing", "--layout", "triton", "--out", "out", "--degrees", "x"), "'degrees' option"),
        (("bench", "missing", "--degrees", "x"), "'degrees' option"),
        (("bench", "missing", "--duration", "0"), "'duration_s' parameter"),
        (("bench", "missing", "--concurrency", "0"), "'concurrency' parameter"),
        (("run", "missing", "--images", ".", "--timeout-s", "x"), "'timeout-s' option"),
        (("calibrate", "missing", "--samples", "0"), "'samples' parameter"),
        (("calibrate", "missing", "--tolerance", "2"), "'tolerance' parameter"),
        (("calibrate", "missing", "--interval", "99"), "half width"),
        (("calibrate", "missing", "--suggest", "--most", "1"), "most >= 2"),
        (("quantize", "missing", "--images", ".", "--out", "out", "--degrees", "x"), "'degrees' option"),
        (("quantize", "missing", "--images", ".", "--out", "out", "--floor", "0"), "'floor_points' parameter"),
        (("export", *NO_MODEL, "--degrees", "x"), "'degrees' option"),
        (("export", *NO_MODEL, "--degrees", "0", "--precision", "x"), "'precision' option"),
        (("export", *NO_MODEL, "--degrees", "0", "--input", "x"), "'input' option"),
        (("export", *NO_MODEL, "--degrees", "0", "--merge-blocks", "1", "--every", "2"), "not both"),
        (("export", *NO_MODEL, "--degrees", "0", "--compensator", "missing"), "Cannot read the compensator"),
        (("align", *NO_MODEL, "--degrees", "4", "--images", "missing"), "No image folder at missing"),
        (("align", *NO_MODEL, "--degrees", "4", "--images", ".", "--method", "x"), "'method' option"),
        (("export", *NO_MODEL, "--degrees", "0", "--image-size", "x"), "'image-size' option"),
        (("export", *NO_MODEL, "--degrees", "0", "--mean", "x"), "'mean' option"),
        (("train", *NO_MODEL, "--images", ".", "--loss", "x"), "'loss' parameter"),
        (("train", *NO_MODEL, "--images", ".", "--merge-blocks", "x"), "'merge-blocks' option"),
        (
            ("evaluate", "--model", "no_such_model", "--images", "missing", "--degrees", "4"),
            "No image folder at missing",
        ),
        (("evaluate", "--model", "no_such_model", "--images", ".", "--degrees", "x"), "'degrees' option"),
    ],
)
def test_options_are_checked_before_anything_is_opened(
    tocom: Tocom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tocom(*arguments)
    assert done.code == 1
    assert said in done.err
