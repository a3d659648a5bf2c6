"""One flipped bit anywhere in a bundle: refused before any inference, by the file's name."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocom.errors import BundleError, CalibrationError, TocomError
from tocom.formats.bundle import Bundle
from tocom.formats.sealed_json import parse_json, parse_sealed, sealed
from tocom.formats.signatures import new_key, sign
from tocom.runtime import Runtime
from tocom.runtime.backends.onnxruntime.backend import OnnxRuntimeEngine

GOLDEN = Path(__file__).parent / "golden" / "version-1"


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A real bundle with a profile of this machine, signed; and the public key."""
    folder = tmp_path_factory.mktemp("signed")
    shutil.copytree(GOLDEN, folder / "bundle")
    with Runtime.open(folder / "bundle", threads=1) as runtime:
        assert runtime.profile is not None
        runtime.profile.save(folder / "bundle")
    new_key(folder / "key")
    sign(folder / "bundle", folder / "key")
    return folder / "bundle", folder / "key.pub"


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Flip one bit of a file, in place, and flip it back."""

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(bit // 8)
            (byte,) = file.read(1)
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))

    flip()
    try:
        yield
    finally:
        flip()


def random_bit(path: Path, generator: random.Random) -> int:
    return generator.randrange(path.stat().st_size * 8)


@pytest.fixture
def no_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda *_: pytest.fail("an inference ran"))


@pytest.mark.usefixtures("no_inference")
@pytest.mark.fault(
    "any single bit of a signed bundle flipped (1,000 random ones)",
    outcome="refused before inference; the file is named",
)
def test_a_thousand_random_flips_are_refused_by_name(signed: tuple[Path, Path]) -> None:
    bundle, key = signed
    # Each file as likely as the next: by bytes alone, nearly all flips would hit the weights.
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    assert {path.name for path in files} >= {"bundle.json", "degree-00.onnx", "degree-02.onnx", "weights.bin"}
    assert {path.parent.name for path in files} == {"bundle", "profiles", "signatures"}
    generator = random.Random(0)
    for _ in range(1000):
        path = generator.choice(files)
        bit = random_bit(path, generator)
        profile = path if path.parent.name == "profiles" else None
        with flipped(path, bit), pytest.raises(TocomError) as caught:
            Runtime.open(bundle, "onnxruntime", degrees=[2], threads=1, trusted_keys=[key], profile=profile)
        assert isinstance(caught.value, (BundleError, CalibrationError)), (path, bit)
        assert path.name in str(caught.value), (path, bit)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_inference")
def test_flips_without_keys_and_with_the_packed_weights_at_hand(signed: tuple[Path, Path]) -> None:
    """The fixture packed the weights: the bundle's own are then not mapped, and checked all the same."""
    bundle, _ = signed
    generator = random.Random(1)
    for name in ("bundle.json", "degree-00.onnx", "degree-02.onnx", "weights.bin"):
        for _ in range(10):
            bit = random_bit(bundle / name, generator)
            with flipped(bundle / name, bit), pytest.raises(BundleError, match=name):
                Runtime.open(bundle, "onnxruntime", threads=1)


@pytest.mark.fault("a bit of a profile flipped", outcome="a warning that names it; it is not used")
def test_a_flipped_profile_beside_the_bundle_is_named_and_not_used(
    signed: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    bundle, _ = signed
    (path,) = (bundle / "profiles").iterdir()
    generator = random.Random(2)
    for _ in range(3):
        caplog.clear()
        with flipped(path, random_bit(path, generator)), Runtime.open(bundle, threads=1) as runtime:
            assert runtime.profile is not None
            assert runtime.profile.measured["how"].startswith("short measurement")
        assert path.name in caplog.text


def test_every_bit_of_the_end_of_a_manifest(tmp_path: Path) -> None:
    """Where the seal stands, a flip must not make a sealed file look like one without a seal."""
    folder = tmp_path / "bundle"
    shutil.copytree(GOLDEN, folder)
    path = folder / "bundle.json"
    size = path.stat().st_size
    for bit in range((size - 100) * 8, size * 8):
        with flipped(path, bit), pytest.raises(BundleError, match=r"bundle\.json"):
            Bundle(folder, verify=False)
    Bundle(folder)


@given(
    content=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_seal_holds_and_breaks(content: dict[str, object], data: st.DataObject) -> None:
    file = sealed(content)
    assert parse_sealed(file) == {**content, "sha256": parse_json(file)["sha256"]}
    bit = data.draw(st.integers(0, len(file) * 8 - 1))
    changed = bytearray(file)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match=r"lacks its seal|was changed"):
        parse_sealed(bytes(changed))
