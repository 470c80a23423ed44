"""A safetensors header is believed only where it describes its file: known lies, and ten thousand drawn ones."""

from __future__ import annotations

import io
import json
import random
import struct
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors

from worldline.checkpoints import headers
from worldline.checkpoints.headers import describe, kind_of, read_header
from worldline.cli import main
from worldline.errors import UserError

GOOD = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.bias": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
    "d": {"dtype": "F16", "shape": [0, 7], "data_offsets": [40, 40]},
}
DATA = 40


def packed(header: Any, data: int = DATA, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **fields}}


def test_a_sound_header_is_what_safetensors_reads(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(packed(GOOD))
    found = {entry.name: (entry.dtype, list(entry.shape)) for entry in read_header(file)}
    assert found == {name: (about["dtype"], about["shape"]) for name, about in safetensors.deserialize(packed(GOOD))}


LIES = {  # what the message names, and the file
    "cut short": ("take 40 bytes, and it has 39", packed(GOOD, 39)),
    "longer than told": ("take 40 bytes, and it has 41", packed(GOOD, 41)),
    "beyond the file": ("take 64 bytes", packed({"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}})),
    "overlapping": ("begins at byte 16", packed(changed("b.bias", data_offsets=[16, 24]))),
    "a hole": ("begins at byte 26", packed(changed("b.bias", data_offsets=[26, 34]))),
    "backwards": ("does not fill", packed(changed("a.weight", data_offsets=[24, 0]))),
    "too few bytes for its shape": ("'a.weight' is F32 (2, 4)", packed(changed("a.weight", shape=[2, 4]))),
    "too few for its type": ("'a.weight' is F64", packed(changed("a.weight", dtype="F64"))),
    "a huge shape": ("impossible shape", packed(changed("a.weight", shape=[2**62, 2**62]))),
    "a huge shape of nothing": ("impossible shape", packed(changed("d", shape=[0, 2**39, 2**39]))),
    "a negative shape": ("impossible shape", packed(changed("a.weight", shape=[-2, -3]))),
    "a shape that is true": ("impossible shape", packed(changed("c", shape=[True]))),
    "an unknown type": ("unknown dtype 'Q4_K'", packed(changed("a.weight", dtype="Q4_K"))),
    "a huge header": ("would have a header of", packed(GOOD, length=2**63)),
    "a header beyond the file": ("would have a header of", packed(GOOD, length=10_000)),
    "no JSON": ("damaged", packed(b"{'a': 1}")),
    "a list": ("no JSON object", packed(b"[]" + b" " * 8)),
    "a name twice": ("twice", packed(b'{"a": 1, "a": 2}')),
    "deep": ("damaged", packed(b"[" * 100_000)),
    "half a surrogate pair": ("damaged", packed(json.dumps(GOOD).replace("b.bias", "\\ud800").encode())),
    "no place": ("not described", packed(changed("c") | {"c": {"dtype": "F32"}})),
    "a pointer of git-lfs": ("git lfs pull", b"version https://git-lfs.github.com/spec/v1\n"),
    "empty": ("0 bytes", b""),
}  # fmt: skip


@pytest.mark.parametrize(("named", "content"), LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_one_line(
    named: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_header(file)
    assert named in str(caught.value)
    assert main(["info", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- drawn files -------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    -1,
    0,
    1,
    8,
    23,
    24,
    2**31,
    2**63,
    2**64,
    1e300,
    None,
    True,
    "",
    "F32",
    [],
    [0],
    {},
    [[]],
    [2**80],
)


def drawn(rng: random.Random) -> bytes:
    """A file with one kind of damage, or with several."""
    header: dict[str, Any] = json.loads(json.dumps(GOOD))
    match rng.randrange(6):
        case 0:  # bits of a sound file
            content = bytearray(packed(GOOD))
            for _ in range(rng.choice([1, 1, 1, 8])):
                content[rng.randrange(len(content) - DATA)] ^= 1 << rng.randrange(8)
            return bytes(content)
        case 1:  # fields
            for _ in range(rng.randint(1, 3)):
                header[rng.choice(list(header))] = {
                    "dtype": rng.choice([*headers.BITS, "Q8", *ODD]),
                    "shape": rng.choice([[rng.randrange(9) for _ in range(rng.randrange(10))], *ODD]),
                    "data_offsets": rng.choice([[rng.randrange(60), rng.randrange(60)], *ODD]),
                }
        case 2:  # values anywhere
            about = header[rng.choice(list(header))]
            about[rng.choice([*about, "more"])] = rng.choice(ODD)
        case 3:  # cut, or with something behind it
            content = bytearray(packed(GOOD))
            return bytes(content[: rng.randrange(len(content))]) + rng.randbytes(rng.choice([0, 0, 7]))
        case 4:  # another length
            return packed(GOOD, length=rng.choice([0, 1, 2, 7, rng.randrange(400), rng.getrandbits(64)]))
        case 5:  # noise, half of it after a plausible length
            noise = rng.randbytes(rng.randrange(200))
            return noise if rng.random() < 0.5 else packed(noise)
    return packed(header, rng.choice([DATA, DATA, rng.randrange(64)]))


class InMemory:
    """As much of a Path as `read_header` asks for: ten thousand files on a disk would only take time."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=len(self.content))

    def open(self, _: str) -> io.BytesIO:
        return io.BytesIO(self.content)

    def __str__(self) -> str:
        return "x.safetensors"


def read(content: bytes) -> dict[str, list[int]] | str:
    """Names and shapes, or the complaint."""
    try:
        return {entry.name: list(entry.shape) for entry in read_header(InMemory(content))}  # type: ignore[arg-type]
    except UserError as error:
        return str(error)


def test_ten_thousand_damaged_files() -> None:
    """None does more than raise UserError or take much memory, and what passes is what safetensors reads as well."""
    rng, passed = random.Random(0), 0
    tracemalloc.start()
    try:
        for case in range(10_000):
            content = drawn(rng)
            found = read(content)
            if isinstance(found, str):
                assert "\n" not in found, case
            else:
                passed += 1
                assert found == {name: about["shape"] for name, about in safetensors.deserialize(content)}, case
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert 100 < passed < 2000  # the damage is neither hopeless nor harmless


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'"",', b"1,"])
def test_the_longest_header_takes_less_than_64_mb(unit: bytes, tmp_path: Path) -> None:
    text = b"[" + unit * (headers.MAX_HEADER_BYTES // len(unit) - 1) + b"1]"
    file = tmp_path / "x.safetensors"
    file.write_bytes(packed(text))
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            read_header(file)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


# ---- what it is of -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "transformer.blocks.0.attn1.to_q.lora_A.weight",
        "diffusion_model.blocks.0.self_attn.q.lora_B.default.weight",
        "lora_unet_blocks_0_cross_attn_k.lora_down.weight",
        "unet.blocks.0.attn.to_q.lora.up.weight",
        "blocks.0.attn.lokr_w1",
        "blocks.0.attn.hada_w2_b",
    ],
)
def test_a_lora_is_told_from_a_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(packed({name: {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}))
    assert "LoRA" in describe(file)["what"]
    assert main(["generate", "a red ball", "--model", str(file)]) == 2
    told = capsys.readouterr().err
    assert "is a LoRA" in told or "a LoRA" in told
    assert "the model that it was trained on" in told


def test_prefixes_of_single_files() -> None:
    names = ["model.diffusion_model.time_projection.1.weight", "model.diffusion_model.head.modulation"]
    assert kind_of(names).what == "Wan's transformer under its authors' names"


def test_names_that_only_look_like_a_lora_s() -> None:
    assert "LoRA" not in kind_of(["blocks.0.exploration.weight", "floral.up", "blocks.0.lorax.weight"]).what


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    file = tmp_path / "Wan2.1_VAE.pth"
    file.write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="a pickle, which is never loaded; convert it once"):
        describe(file)
    (tmp_path / "notes.txt").write_text("model")
    with pytest.raises(UserError, match="is a file; give a model folder"):
        describe(tmp_path / "notes.txt")
