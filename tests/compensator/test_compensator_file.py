"""The compensator's file: round trip, and one readable line for every kind of damage."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_vits import busy_compensator, small_vit
from torch import Tensor

from tocom import Compensator
from tocom.errors import CompensatorError, OutputError
from tocom.system.files import atomic_path, sha256_file

Tensors, Metadata = dict[str, Tensor], dict[str, str]


@pytest.fixture(scope="module")
def original() -> Compensator:
    return busy_compensator(small_vit(), groups=4)


@pytest.fixture
def saved(original: Compensator, tmp_path: Path) -> Path:
    path = tmp_path / "compensator.safetensors"
    original.save(path)
    return path


def read(path: Path) -> tuple[Tensors, Metadata]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), dict(file.metadata())


def test_nothing_is_written_but_the_part_that_a_kill_may_leave(
    original: Compensator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is locked, so the next run knows it for stale; a file of another name would stay for ever."""
    parts = []

    @contextlib.contextmanager
    def watched(path: Path) -> Iterator[Path]:
        with atomic_path(path) as beside:
            parts.append(beside.stat().st_ino)
            yield beside

    monkeypatch.setattr("tocom.compensator.tensor_file.atomic_path", watched)
    original.save(tmp_path / "c.safetensors")
    assert parts == [(tmp_path / "c.safetensors").stat().st_ino]


def test_round_trip(original: Compensator, saved: Path) -> None:
    loaded = Compensator.load(saved)
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert repr(loaded) == repr(original)
    assert not any(module.training for module in loaded.modules())
    assert loaded.metadata["file_sha256"] == sha256_file(saved)
    assert loaded.describe()["image_size"] == "80x80"
    loaded.save(saved.parent / "again.safetensors")
    assert read(saved.parent / "again.safetensors")[0].keys() == read(saved)[0].keys()


def test_what_stands_in_the_file(original: Compensator, saved: Path) -> None:
    tensors, metadata = read(saved)
    assert len(tensors) == 3 * 4
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.float32"}
    wanted = {
        "format": "tocom-compensator",
        "version": "1",
        "model": "vit_tiny_patch16_224",
        "method": "merge",
        "family": "every",
        "groups": "4",
        "rank": "2",
        "scale": "0.1",
        "image_size": "80x80",
    }
    assert {key: metadata[key] for key in wanted} == wanted
    assert len(metadata["base_sha256"]) == 64
    assert list(saved.parent.iterdir()) == [saved]


def drop(name: str) -> Callable[[Tensors, Metadata], None]:
    return lambda tensors, _: tensors.__delitem__(name)


def put(name: str, tensor: Tensor) -> Callable[[Tensors, Metadata], None]:
    return lambda tensors, _: tensors.update({name: tensor})


def say(**changed: str) -> Callable[[Tensors, Metadata], None]:
    return lambda _, metadata: metadata.update(changed)


def forget(key: str) -> Callable[[Tensors, Metadata], None]:
    return lambda _, metadata: metadata.__delitem__(key)


Q_UP = "blocks.1.attn.q.up"
DAMAGE = {
    "tensor missing": (drop("blocks.2.attn.v.down"), r"tensor blocks\.2\.attn"),
    "first tensor missing": (drop("blocks.0.attn.q.down"), "has no matrices 'blocks.0.attn.q.down'"),
    "tensor extra": (put("blocks.0.attn.k.up", torch.ones(64, 8)), r"blocks\.0\.attn\.k\.up .* None, got \(64, 8\)"),
    "block extra": (put("blocks.3.attn.q.up", torch.ones(64, 8)), r"blocks\.3\.attn\.q\.up"),
    "wrong shape": (put(Q_UP, torch.ones(64, 7)), r"q\.up should have shape \(64, 8\), got \(64, 7\)"),
    "transposed": (put(Q_UP, torch.ones(8, 64)), r"q\.up should have shape \(64, 8\), got \(8, 64\)"),
    "vector": (put("blocks.0.attn.q.down", torch.ones(8)), "has no matrices"),
    "not finite": (put(Q_UP, torch.full((64, 8), torch.inf)), "not finite"),
    "NaN": (put(Q_UP, torch.full((64, 8), torch.nan)), "not finite"),
    "integers": (put(Q_UP, torch.ones(64, 8, dtype=torch.int64)), "must be float32, but .*q.up is torch.int64"),
    "half": (put(Q_UP, torch.ones(64, 8, dtype=torch.float16)), "must be float32, but .*q.up is torch.float16"),
    "another format": (say(format="lora"), "has format 'lora' version '1', not 'tocom-compensator' version '1'"),
    "a later version": (say(version="2"), "version '2', not 'tocom-compensator' version '1'"),
    "no format": (forget("format"), "has format None"),
    "no model": (forget("model"), "lacks metadata: model"),
    "no fingerprint": (forget("base_sha256"), "lacks metadata: base_sha256"),
    "groups no number": (say(groups="many"), "groups, rank and scale must be numbers"),
    "scale no number": (say(scale="a tenth"), "groups, rank and scale must be numbers"),
    "scale NaN": (say(scale="nan"), "'scale' parameter must be a positive number"),
    "groups negative": (say(groups="-4", rank="-2"), "'groups' parameter must be a positive integer"),
    "another rank": (say(rank="3"), "says 4 groups of rank 3, its tensors have 8 rank rows"),
    "more groups than memory": (say(groups="999999999999"), "999999999999 groups of rank 2, its tensors have 8"),
    "no family": (forget("family"), "lacks metadata: family"),
    "a family of other blocks": (say(family="spaced:1,9"), "must name blocks of the model, which has 3: 0 to 2. Got 9"),
    "no family's name": (say(family="often"), "must be 'every', or 'spaced:'.*Got 'often'"),
    "no method": (say(method="drop"), "must be one of merge, prune. Got 'drop'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.fault("a compensator whose tensors or metadata are wrong", outcome="CompensatorError in one line")
def test_damage_is_one_readable_line(kind: str, saved: Path) -> None:
    change, message = DAMAGE[kind]
    tensors, metadata = read(saved)
    change(tensors, metadata)
    save_file(tensors, saved, metadata=metadata)
    with pytest.raises(CompensatorError, match=message) as caught:
        Compensator.load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"not safetensors at all, but long enough", b"\xff" * 64])
def test_no_safetensors_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    with pytest.raises(CompensatorError, match=r"Cannot read the compensator .*c\.safetensors") as caught:
        Compensator.load(path)
    assert "\n" not in str(caught.value)


def test_missing_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CompensatorError, match="Cannot read the compensator"):
            Compensator.load(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.fault(
    "a compensator cut or flipped anywhere", outcome="CompensatorError, or a compensator of the same shape"
)
def test_a_file_cut_or_flipped_anywhere_is_refused_or_the_same_size(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A flipped bit of a weight is still a weight; whatever loads must have the shapes that it says it has."""
    path = tmp_path_factory.mktemp("flip") / "c.safetensors"
    Compensator(depth=1, channels=8, groups=2, metadata={"model": "m", "image_size": "8", "base_sha256": "0"}).save(
        path
    )
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        loaded = Compensator.load(path)
    except CompensatorError:
        return
    assert {tuple(matrix.shape) for matrix in loaded.delta(0, loaded.groups).values()} == {(8, 8)}


def test_no_room_is_an_output_error_and_the_old_file_stays(original: Compensator, saved: Path) -> None:
    """A limit on the size of files stops the writing half-way, as a full disk does."""
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(OutputError, match=r"Cannot write .*compensator\.safetensors"):
            original.save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
