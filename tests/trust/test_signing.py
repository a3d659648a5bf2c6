"""Signatures: made, checked, refused; and whatever else could make an unsigned file run."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sidecars import sidecar_json

from tocom.cli import main
from tocom.cli.app import app
from tocom.errors import BundleError, OutputError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.sealed_json import write_sealed_json
from tocom.formats.signatures import load_public_keys, new_key, read_signatures, sign
from tocom.formats.verification import verify
from tocom.runtime import Runtime
from tocom.runtime.backends.tensorrt.files import find_engines

GOLDEN = Path(__file__).parent / "golden" / "version-1"
DEVICE = {"gpu": "GPU", "compute_capability": "8.7"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key pairs 'ours' and 'theirs'."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        new_key(folder / name)
    return folder


def public(keys: Path, name: str = "ours") -> list[Path]:
    return [keys / f"{name}.pub"]


def test_a_signed_bundle_opens_and_answers_and_reloads(bundle: Path, keys: Path) -> None:
    sign(bundle, keys / "ours")
    with Runtime.open(bundle, trusted_keys=[*public(keys, "theirs"), *public(keys)], threads=1) as runtime:
        images = np.zeros((1, *runtime.bundle.image_shape), np.float32)
        assert runtime.infer(images).outputs["logits"].shape == (1, 3)
        shutil.rmtree(bundle / "signatures")
        with pytest.raises(BundleError, match=r"signed by no trusted key\. Trusted: [0-9a-f, ]+; found: none"):
            runtime.reload()
        assert runtime.infer(images).met_budget


@pytest.mark.fault(
    "a bundle that no trusted key signed",
    outcome="BundleError that names the keys, before anything of it is parsed or loaded",
)
def test_unsigned_and_signed_by_others(bundle: Path, keys: Path) -> None:
    ours = load_public_keys(public(keys))
    with pytest.raises(BundleError, match="is signed by no trusted key"):
        Bundle(bundle, trusted_keys=ours)
    signature = sign(bundle, keys / "theirs")
    with pytest.raises(BundleError, match=f"found: {signature.key_id}"):
        Bundle(bundle, trusted_keys=ours)
    sign(bundle, keys / "ours")
    Bundle(bundle, trusted_keys=ours)
    assert len(read_signatures(bundle)) == 2
    with pytest.raises(RequestError, match="must name at least one public key"):
        Runtime.open(bundle, trusted_keys=[])


@pytest.mark.fault(
    "a forger who makes files, hashes and seals consistent again", outcome="BundleError: the signature does not fit"
)
def test_a_forger_who_seals_anew_is_refused(bundle: Path, keys: Path) -> None:
    """Hashes do not help against someone who can write: all is made consistent again, but the signature."""
    signature = sign(bundle, keys / "ours")
    ours = load_public_keys(public(keys))
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["labels"] = ["x", "y", "z"]
    write_sealed_json(bundle / "bundle.json", manifest)
    assert Bundle(bundle).labels == ["x", "y", "z"]
    with pytest.raises(BundleError, match=r"no trusted key signed bundle\.json with sha256"):
        Bundle(bundle, trusted_keys=ours)
    # The signature's list, changed to fit.
    content = json.loads(signature.path.read_text())
    content["files"]["bundle.json"] = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    write_sealed_json(signature.path, content)
    with pytest.raises(BundleError, match=f"{signature.path.name} is not of the key"):
        Bundle(bundle, trusted_keys=ours)
    # Another key's signature under the trusted key's name.
    theirs = sign(bundle, keys / "theirs")
    write_sealed_json(signature.path, {**json.loads(theirs.path.read_text()), "key_id": signature.key_id})
    with pytest.raises(BundleError, match="is not of the key"):
        Bundle(bundle, trusted_keys=ours)


@pytest.mark.fault("signature files that are damaged or no signatures", outcome="BundleError in one line")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "none"}, r"'none'"),
        ({"version": 2}, "this tocom reads"),
        ({"key_id": 7}, "wrong type"),
        ({"files": {"bundle.json\n0": "0"}}, "names a file without its sha256"),
        ({"files": []}, "wrong type"),
        ({"signature": "&&&"}, "damaged"),
        ({"signature": base64.b64encode(b"short").decode()}, "is not of the key"),
    ],
)
def test_signature_files_that_are_none(bundle: Path, keys: Path, change: dict[str, object], message: str) -> None:
    signature = sign(bundle, keys / "ours")
    write_sealed_json(signature.path, {**json.loads(signature.path.read_text()), **change})
    with pytest.raises(BundleError, match=message) as caught:
        Bundle(bundle, trusted_keys=load_public_keys(public(keys)))
    assert "\n" not in str(caught.value)


def add_engine(bundle: Path, content: bytes = b"engine") -> Path:
    """Put an engine with its sidecar beside the bundle, as ``tocom build`` does."""
    sidecar = bundle / "engines" / "tensorrt-10.13.2-gpu" / "degree-00.json"
    engine = sidecar.with_suffix(".engine")
    engine.parent.mkdir(parents=True, exist_ok=True)
    engine.write_bytes(content)
    sidecar.write_text(sidecar_json(bundle, 0, engine, len(content), {}))
    return sidecar


@pytest.mark.fault(
    "an engine that was made or exchanged after the signing", outcome="BundleError that names its sidecar"
)
def test_engines_are_signed_with_the_bundle(bundle: Path, keys: Path) -> None:
    ours = load_public_keys(public(keys))
    sign(bundle, keys / "ours")
    sidecar = add_engine(bundle)
    found = find_engines(Bundle(bundle), "tensorrt", "10.13.2", DEVICE)
    assert found.engines[0].read_engine(found.path) == b"engine"
    with pytest.raises(BundleError, match=r"no trusted key signed engines/tensorrt-10\.13\.2-gpu/degree-00\.json"):
        find_engines(Bundle(bundle, trusted_keys=ours), "tensorrt", "10.13.2", DEVICE)
    assert [file.file for file in verify(bundle, ours).problems] == ["engines/tensorrt-10.13.2-gpu/degree-00.json"]
    sign(bundle, keys / "ours")
    assert list(find_engines(Bundle(bundle, trusted_keys=ours), "tensorrt", "10.13.2", DEVICE).engines) == [0]
    assert not verify(bundle, ours).problems
    add_engine(bundle, b"another")
    with pytest.raises(BundleError, match="no trusted key signed"):
        find_engines(Bundle(bundle, trusted_keys=ours), "tensorrt", "10.13.2", DEVICE)
    sidecar.with_suffix(".engine").write_bytes(b"third")
    assert any("its sidecar says" in str(file.problem) for file in verify(bundle).problems)


def test_the_signed_text_is_what_the_documents_say(bundle: Path, keys: Path, tmp_path: Path) -> None:
    """Made and checked again with sha256sum and openssl alone."""
    if not (shutil.which("openssl") and shutil.which("sha256sum")):
        pytest.skip("openssl or sha256sum is not installed")
    add_engine(bundle)
    signature = sign(bundle, keys / "ours")
    content = json.loads(signature.path.read_text())
    names = sorted(content["files"])
    sums = subprocess.run(["sha256sum", *names], cwd=bundle, capture_output=True, text=True, check=True).stdout
    (tmp_path / "text").write_text(f"tocom-signature 1 ed25519 {content['key_id']}\n{sums}")
    (tmp_path / "value").write_bytes(base64.b64decode(content["signature"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys / "ours.pub", "-rawin"]
    subprocess.run(
        [*command, "-in", tmp_path / "text", "-sigfile", tmp_path / "value"], check=True, capture_output=True
    )
    public_key = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", keys / "ours.pub", "-outform", "DER"], capture_output=True, check=True
    ).stdout[-32:]
    assert content["key_id"] == hashlib.sha256(public_key).hexdigest()[:16]


def test_key_files(tmp_path: Path, keys: Path, bundle: Path) -> None:
    old = os.umask(0)
    try:
        new_key(tmp_path / "fresh" / "key")
    finally:
        os.umask(old)
    assert (tmp_path / "fresh" / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(OutputError, match="File exists"):
        new_key(tmp_path / "fresh" / "key")
    (tmp_path / "text").write_text("no key")
    for wrong in (keys / "ours", tmp_path / "text", tmp_path / "none"):
        with pytest.raises(RequestError, match=str(wrong)):
            load_public_keys([wrong])
    for wrong in (keys / "ours.pub", tmp_path / "text", tmp_path / "none"):
        with pytest.raises(RequestError, match=str(wrong)):
            sign(bundle, wrong)


def test_without_the_package_only_signatures_stop(bundle: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(bundle, keys / "ours")
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    Bundle(bundle)
    assert not verify(bundle).problems
    with pytest.raises(RequestError, match=r"pip install 'tocom\[sign\]'"):
        Runtime.open(bundle, trusted_keys=public(keys))


def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["tocom", *map(str, arguments)])
    app.registered_commands.clear()
    app.registered_groups.clear()
    code = 0
    try:
        main()
    except SystemExit as done:
        code = int(done.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_commands(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tocom(*arguments: object) -> tuple[int, str, str]:
        return command(capsys, monkeypatch, *arguments)

    code, out, _ = tocom("sign", "--new-key", tmp_path / "key", "--json")
    key_id = json.loads(out)["key_id"]
    assert (code, json.loads(out)["public"]) == (0, f"{tmp_path}/key.pub")
    code, _, err = tocom("verify", bundle, "--key", tmp_path / "key.pub")
    assert (code, "signed by no trusted key" in err) == (1, True)
    code, out, _ = tocom("sign", bundle, "--key", tmp_path / "key", "--json")
    assert list(json.loads(out)["files"]) == ["bundle.json"]
    (bundle / "notes.txt").write_text("nobody opens this")
    code, out, _ = tocom("verify", bundle, "--key", tmp_path / "key.pub", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["signed_by"]) == (0, True, [key_id])
    kinds = {file["file"]: file["kind"] for file in report["files"]}
    assert (kinds["weights.bin"], kinds["notes.txt"]) == ("export", "other")
    code, out, _ = tocom("verify", bundle)
    assert (code, "not checked: no --key" in out) == (0, True)

    for name in ("weights.bin", "degree-02.onnx"):
        with (bundle / name).open("r+b") as file:
            file.write(b"\xff\xff\xff")
    code, out, err = tocom("verify", bundle, "--json")
    assert [file["file"] for file in json.loads(out)["files"] if file["problem"]] == ["degree-02.onnx", "weights.bin"]
    assert (code, "2 of 7 files are not right" in err) == (1, True)
    code, _, err = tocom("sign", bundle, "--key", tmp_path / "key")
    assert (code, "is not signed: degree-02.onnx" in err) == (1, True)
    for arguments in (("sign",), ("sign", "--key", tmp_path / "key"), ("sign", bundle, "--new-key", tmp_path / "k")):
        code, _, err = tocom(*arguments)
        assert (code, "error: RequestError" in err) == (1, True)
