"""What must stay secret stands in no log, report or file."""

from __future__ import annotations

import contextlib
import platform
import shutil
import sys
from pathlib import Path

import pytest

from tocom.cli import main
from tocom.cli.app import app
from tocom.cli.sources import _without_secrets
from tocom.errors import RequestError
from tocom.export.engines.backend import BackendFound
from tocom.export.engines.process import Job, build_engines
from tocom.formats.build_options import BuildOptions
from tocom.formats.signatures import load_public_keys, new_key, sign

GOLDEN = Path(__file__).parent / "golden" / "version-1"
SECRET = "hf_Xq7sEcReT0fThIsTeSt"
USER, HOST = "u5er0fTh1sTest", "h0st0fTh1sTest"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "TOCOM_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setenv("HOSTNAME", HOST)
    monkeypatch.setattr(platform, "node", lambda: HOST)
    monkeypatch.setattr("socket.gethostname", lambda: HOST)


def tell(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Run the command line in this process; return all that it printed, native code included."""
    monkeypatch.setattr(sys, "argv", ["tocom", *map(str, arguments)])
    app.registered_commands.clear()
    app.registered_groups.clear()
    with contextlib.suppress(SystemExit):
        main()
    return "".join(capfd.readouterr())


@pytest.mark.fault(
    "secrets in the environment, a private key, the names of user and machine",
    outcome="none stands in anything that is printed, logged or written by the commands that make files and reports",
)
def test_no_command_tells_what_it_should_not(
    bundle: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("jinja2")
    caplog.set_level("DEBUG")
    key = tmp_path / "keys" / "key"
    new_key(key)
    said = [
        tell(capfd, monkeypatch, "sign", bundle, "--key", key),
        tell(capfd, monkeypatch, "sign", bundle, "--key", key, "--json"),
        tell(capfd, monkeypatch, "verify", bundle, "--key", f"{key}.pub", "--json"),
        tell(capfd, monkeypatch, "verify", bundle, "--key", key),  # the private key where the public one belongs
        tell(capfd, monkeypatch, "inspect", bundle, "--json"),
        tell(capfd, monkeypatch, "doctor", "--json"),
        tell(capfd, monkeypatch, "calibrate", bundle, "--samples", 3, "--threads", 1, "--report", "--json"),
    ]
    assert all(said)
    assert "must be an Ed25519 public key" in said[3]
    written = [path for path in bundle.rglob("*") if path.is_file()]
    assert {"report.html", f"{load_public_keys([f'{key}.pub'])[0].key_id}.json"} <= {path.name for path in written}
    everything = "\n".join([*said, caplog.text]).encode() + b"".join(path.read_bytes() for path in written)
    private = key.read_bytes().splitlines()[1]
    assert len(private) == 64
    for secret in (SECRET.encode(), private, USER.encode(), HOST.encode()):
        assert secret not in everything


def test_errors_of_keys_quote_no_key(bundle: Path, tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    private = (tmp_path / "key").read_text()
    (tmp_path / "damaged").write_text(private.replace("\n", "\n\n", 2)[:-40])
    for use in (lambda path: sign(bundle, path), lambda path: load_public_keys([path])):
        with pytest.raises(RequestError) as caught:
            use(tmp_path / "damaged")
        assert private.splitlines()[1][:20] not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://someone:hunter2@camera:554/1", "rtsp://…@camera:554/1"),
        ("rtsp://someone:hun@ter/2@camera/1", "rtsp://…@camera/1"),
        ("http://camera/video?user=someone&password=hunter2", "http://camera/video?…"),
        ("http://camera/video#hunter2", "http://camera/video?…"),
        ("/videos/what?.avi", "/videos/what?.avi"),
    ],
)
@pytest.mark.fault("a camera's address with a password that cannot be opened", outcome="DataError without the password")
def test_the_password_of_a_camera(
    bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str, shown: str
) -> None:
    assert _without_secrets(address) == shown
    pytest.importorskip("cv2")
    # A port of this machine that nobody listens at: refused at once.
    said = tell(
        capfd, monkeypatch, "run", bundle, "--video", address.replace("camera", "127.0.0.1").replace(":554", "")
    )
    assert "error: DataError: Cannot open the video" in said
    assert "hunter2" not in said
    assert "ter/2" not in said


def test_a_build_that_fails_does_not_tell_its_environment(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="last words") as caught:
        build_engines(
            BackendFound("tensorrt", "10.3.0", "tensorrt"),
            [Job(0, tmp_path / "a", tmp_path / "b", 0)],
            BuildOptions(),
            op_plugin=None,
            timing_cache=tmp_path / "c",
            on_done=lambda degree, facts: None,
            progress=lambda *what: None,
            worker=("-c", "raise SystemExit('last words')"),
        )
    assert SECRET not in str(caught.value)
