"""The whole way through the command line on a small model: train, export, inspect, run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_calls import MODEL, Tocom

from tocom import Compensator
from tocom.formats.bundle import Bundle


@pytest.fixture
def compensator(tocom: Tocom, checkpoint: Path, pictures: Path, tmp_path: Path) -> Path:
    out = tmp_path / "new folder" / "compensator.safetensors"
    done = tocom(
        "train", "--model", MODEL, "--weights", checkpoint, "--image-size", 64, "--images", pictures, "--out", out,
        "--groups", 4, "--steps", 3, "--batch-size", 2, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["groups"], facts["method"], facts["images"], facts["loss"]) == (4, "merge", "6", "kl")
    assert list(out.parent.iterdir()) == [out]
    return out


def test_train_export_inspect_run(
    tocom: Tocom, checkpoint: Path, pictures: Path, compensator: Path, tmp_path: Path
) -> None:
    assert Compensator.load(compensator).describe()["model"] == MODEL
    bundle = tmp_path / "bundle"
    common = ("--model", MODEL, "--weights", checkpoint, "--image-size", 64, "--check-images", pictures)
    done = tocom("export", *common, "--compensator", compensator, "--degrees", "0:4:4", "--out", bundle, "--json")
    assert done.code == 0, done.err
    manifest = json.loads(done.out)
    assert manifest == Bundle(bundle).manifest
    assert [entry["degree"] for entry in manifest["degrees"]] == [0, 4]
    assert manifest["labels"] == ["bolt", "nut", "washer"]
    assert manifest["model"]["weights"] == "file"
    assert manifest["degrees"][0]["check"]["max_abs_difference"] <= 1e-4

    shown = tocom("inspect", bundle)
    assert shown.code == 0
    assert "test_vit3" in shown.out + shown.err
    assert json.loads(tocom("inspect", bundle, "--json").out) == manifest
    assert json.loads(tocom("inspect", compensator, "--json").out)["groups"] == 4
    assert "base_sha256" in tocom("inspect", compensator).out

    ran = tocom("run", bundle, "--images", pictures, "--budget-ms", 10_000, "--json")
    assert ran.code == 0, ran.err
    answers = json.loads(ran.out)["answers"]
    assert len(answers) == 6
    assert {answer["label"] for answer in answers} <= {"bolt", "nut", "washer"}

    for budget in ("0", "-3", "nan", "-inf"):
        refused = tocom("run", bundle, "--images", pictures, "--budget-ms", budget)
        assert (refused.code, refused.err.count("\n")) == (1, 1), refused.err
        assert refused.err.startswith("error: RequestError: ")
        assert refused.out == ""

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes((pictures / "0.png").read_bytes()[:60])
    refused = tocom("run", bundle, "--images", tmp_path / "images", "--json")
    assert (refused.code, refused.out) == (1, "")
    assert "Cannot read the image" in refused.err
    assert "broken.png" in refused.err


def test_doctor_tells_a_person_and_a_machine(tocom: Tocom) -> None:
    findings = json.loads(tocom("doctor", "--json").out)
    assert {"what", "ok", "found", "cure"} == set(findings[0])
    by_name = {finding["what"]: finding for finding in findings}
    assert by_name["export"]["ok"]
    explained = {"NVIDIA driver", "TensorRT", "op plugin library", "TensorRT headers", "nvcc", "power mode", "disk"}
    assert explained <= set(by_name)
    assert "onnx" in by_name["export"]["found"]
    assert all(finding["cure"] or finding["ok"] for finding in findings)
    shown = tocom("doctor")
    assert shown.code == 0
    assert "training" in shown.out + shown.err
    extras = [finding["cure"].split("'")[1] for finding in findings if "tocom[" in finding["cure"]]
    assert all(extra in shown.out for extra in extras), shown.out  # not taken for the table's markup


def test_help_lists_commands_that_answer(tocom: Tocom) -> None:
    listed = tocom("--help")
    assert listed.code == 0
    for verb in ("quickstart", "train", "export", "build", "calibrate", "run", "inspect", "doctor", "plugins"):
        assert verb in listed.out
        told = tocom(verb, "--help")
        assert told.code == 0
        assert "Usage" in told.out
    for planned in ("evaluate", "bench", "verify"):
        if planned not in listed.out:
            assert tocom(planned).code == 2


def test_version(tocom: Tocom) -> None:
    import tocom as package

    assert tocom("--version").out == f"tocom {package.__version__}\n"
