"""Every change to a signed file is noticed, and what is said of its making is what was done."""

from __future__ import annotations

import io
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldline.errors import UserError
from worldline.media import credentials
from worldline.media.credentials import verify
from worldline.media.identity import SIGN_WITH, UNSIGNED
from worldline.media.provenance import Parent, provenance
from worldline.media.read import read_video
from worldline.media.write import write_clip, write_growing, write_image, write_video

RECORD = provenance("a red ball", seed=7, model_hash="ab" * 32, model="worldline-tiny")
MANIFEST = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")  # the type of C2PA's uuid box (C2PA 2.2, A.5.1)
UNBOUND = (b"ftyp", b"free", b"skip", b"mfra")


@pytest.fixture
def signed(tmp_path: Path, clip: np.ndarray) -> Path:
    path = tmp_path / "a.mp4"
    write_video(path, clip, 16, RECORD)
    return path


def state(data: bytes) -> str:
    """What `verify` says of these bytes; "refused" where they are no file that carries a manifest."""
    try:
        return credentials._read(io.BytesIO(data)).state
    except UserError:
        return "refused"


def boxes(data: bytes) -> dict[bytes, list[range]]:
    """The boxes of an mp4 by their type (ISO/IEC 14496-12, 4.2)."""
    found: dict[bytes, list[range]] = {}
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        assert size >= 8
        found.setdefault(data[at + 4 : at + 8], []).append(range(at, at + size))
        at += size
    return found


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


# ---- what is noticed ---------------------------------------------------------------------------


def test_each_of_a_thousand_flipped_bytes_of_bound_content_is_noticed(signed: Path) -> None:
    data, rng = signed.read_bytes(), np.random.default_rng(0)
    held = boxes(data)
    (manifest,) = held[b"uuid"]
    assert data[manifest.start + 8 : manifest.start + 24] == MANIFEST
    assert state(data) == "sound"
    free = {at for kind in UNBOUND for box in held.get(kind, []) for at in box} | set(manifest)
    bound = sorted(set(range(len(data))) - free)
    assert set(held[b"moov"][0]) | set(held[b"mdat"][0]) == set(bound)
    positions, bits = rng.choice(bound, 1000), rng.integers(1, 256, 1000)
    missed = [at for at, bit in zip(positions, bits, strict=True) if state(flipped(data, at, int(bit))) == "sound"]
    assert missed == []


def test_a_flip_in_the_manifest_is_noticed_or_says_nothing_else(signed: Path) -> None:
    # What is not covered by the signature is its own padding and names of boxes that are not read.
    data, rng = signed.read_bytes(), np.random.default_rng(1)
    (manifest,) = boxes(data)[b"uuid"]
    said, noticed = credentials._read(io.BytesIO(data)), 0
    for at, bit in zip(rng.choice(manifest, 500), rng.integers(1, 256, 500), strict=True):
        changed = flipped(data, at, int(bit))
        if state(changed) == "sound":
            assert credentials._read(io.BytesIO(changed)) == said
        else:
            noticed += 1
    assert noticed > 250


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png", ".jpg"])
def test_pictures_are_bound_as_well(suffix: str, tmp_path: Path, clip: np.ndarray) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in (".gif", ".webp"):
        write_clip(path, clip[:3], 16, RECORD)
    else:
        write_image(path, clip[0], RECORD)
    data, rng = path.read_bytes(), np.random.default_rng(2)
    assert state(data) == "sound"
    # The manifest is one stretch of the file: those bytes that an unsigned file has not.
    start = data.index(b"jumb") - 64
    stop = start + len(data) - len(unsigned(path, clip))
    bound = [*range(start), *range(stop + 64, len(data))]
    missed = [at for at in rng.choice(bound, 100) if state(flipped(data, at, 1)) == "sound"]
    assert missed == []


def unsigned(path: Path, clip: np.ndarray) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SIGN_WITH, UNSIGNED)
        other = path.with_stem("unsigned")
        if path.suffix in (".gif", ".webp"):
            write_clip(other, clip[:3], 16, RECORD)
        else:
            write_image(other, clip[0], RECORD)
    return other.read_bytes()


def test_cut_short_and_added_to(signed: Path) -> None:
    data = signed.read_bytes()
    assert state(data[:-1]) != "sound"
    assert state(data + b"\0") != "sound"
    assert state(data + data[:8]) != "sound"


def test_signed_and_unsigned_show_the_same(signed: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIGN_WITH, UNSIGNED)
    write_video(signed.with_name("b.mp4"), clip, 16, RECORD)
    a, b = read_video(signed), read_video(signed.with_name("b.mp4"))
    assert (a.frames == b.frames).all()
    assert (a.fps, a.metadata) == (b.fps, b.metadata)
    assert verify(signed.with_name("b.mp4")).state == "absent"
    data = signed.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


# ---- what is said ------------------------------------------------------------------------------


def test_what_a_file_says(signed: Path) -> None:
    report = verify(signed)
    assert (report.state, report.problems, report.trusted) == ("sound", [], False)
    assert report.signer is not None
    assert report.signer["development"]
    assert report.source_type == "trainedAlgorithmicMedia"
    # printf %s "a red ball" | sha256sum
    prompt = "9bc68b58423cea50482c3ca059001a649da8744068ef65ed02ac0f9fbba501f8"
    told = {"model": "worldline-tiny", "model_sha256": "ab" * 32, "prompt_sha256": prompt, "seed": 7}
    assert report.told == {**told, "verb": "generate"}
    assert report.parents == []
    (manifest,) = boxes(signed.read_bytes())[b"uuid"]
    assert b"red ball" not in signed.read_bytes()[manifest.start : manifest.stop]


def test_what_no_model_made_is_not_signed(tmp_path: Path, clip: np.ndarray) -> None:
    write_video(tmp_path / "a.mp4", clip, 16, {"prompt": "footage"})
    assert verify(tmp_path / "a.mp4").state == "absent"


def test_parents_keep_what_they_said(signed: Path, tmp_path: Path, clip: np.ndarray) -> None:
    mask = tmp_path / "mask.png"
    write_image(mask, clip[0])
    other = tmp_path / "other" / signed.name  # of the same name
    other.parent.mkdir()
    other.write_bytes(flipped(signed.read_bytes(), signed.stat().st_size - 9, 1))
    junk = tmp_path / "clip.webm"
    junk.write_bytes(b"\x1a\x45\xdf\xa3 of another kind")
    parents = [Parent(signed, "opened"), Parent(other, "placed"), Parent(mask, "input"), Parent(junk, "input")]
    out = tmp_path / "out.mp4"
    write_video(out, clip, 16, {**RECORD, "verb": "blend"}, parents=parents)
    report = verify(out)
    assert (report.state, report.problems, report.told["verb"]) == ("sound", [], "blend")
    assert report.source_type == "compositeWithTrainedAlgorithmicMedia"
    by_hash = {parent["sha256"]: parent for parent in report.parents}
    assert len(by_hash) == 4
    found = [by_hash[credentials._Held.of(parent).sha256] for parent in parents]
    assert [parent["title"] for parent in found] == ["a.mp4", "a.mp4", "mask.png", "clip.webm"]
    assert [parent["role"] for parent in found] == ["opened", "placed", "input", "input"]
    assert [parent.get("state") for parent in found] == ["sound", "altered", None, None]
    assert found[0]["source_type"] == "trainedAlgorithmicMedia"
    # and so do those after
    write_video(tmp_path / "last.mp4", clip, 16, RECORD, parents=[Parent(out, "opened")])
    assert verify(tmp_path / "last.mp4").parents[0]["state"] == "sound"


def test_a_parent_whose_manifests_are_too_long_is_named_without_them(
    signed: Path, tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "MOST", 6000)
    write_video(tmp_path / "b.mp4", clip, 16, RECORD, parents=[Parent(signed, "opened")])
    report = verify(tmp_path / "b.mp4")
    assert (report.state, report.parents[0]["title"]) == ("sound", "a.mp4")
    assert "state" not in report.parents[0]


def test_a_file_that_grew_is_signed_when_it_is_whole(tmp_path: Path, clip: np.ndarray) -> None:
    path = tmp_path / "a.mp4"

    def slowly() -> Any:
        for frame in clip:
            assert not path.exists()
            yield frame

    write_growing(path, slowly(), 16, RECORD)
    assert verify(path).state == "sound"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_no_space_for_the_signed_file_is_told_as_such_and_leaves_nothing(signed: Path, clip: np.ndarray) -> None:
    data = signed.read_bytes()
    (manifest,) = boxes(data)[b"uuid"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) - len(manifest) // 2, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            write_video(signed, clip, 16, RECORD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.read_bytes() for file in signed.parent.iterdir()] == [data]
