"""Every verb on an untrained model: known pixels untouched, lengths as asked, joins in latents, clear errors."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.checkpoints.folder import Parts, save_pretrained
from worldline.cli import main
from worldline.dit.conditions import from_mask
from worldline.dit.model import DiT
from worldline.dit.patchify import patchify
from worldline.errors import UserError
from worldline.generate import edit
from worldline.generate.board import Board, Card, read_board
from worldline.generate.canvas import timeline
from worldline.generate.codec import Codec
from worldline.generate.denoiser import Denoiser
from worldline.generate.drawing import Drawing
from worldline.generate.pipeline import Pipeline
from worldline.generate.storyboard import storyboard
from worldline.media.credentials import verify
from worldline.media.provenance import read_provenance
from worldline.media.read import Video, read_video
from worldline.media.write import write_image, write_video


@pytest.fixture(scope="module")
def pipeline(micro_parts: Parts) -> Pipeline:
    return Pipeline(micro_parts, identity="abc", device="cpu", dtype=torch.float32)


def footage(frames: int, height: int = 32, width: int = 32, seed: int = 0) -> Video:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3)).astype(np.uint8)
    return Video(pixels, Fraction(16))


CLIP = footage(13)


@pytest.mark.parametrize(("forward", "backward"), [(0.5, 0), (0, 0.5), (0.25, 0.3125), (2.0, 1.5)])
@pytest.mark.parametrize("frames", [1, 3, 5, 13])
def test_extend(pipeline: Pipeline, forward: float, backward: float, frames: int) -> None:
    video = footage(frames)
    result = edit.extend(pipeline, video, "a ball", forward, backward, steps=1)
    before, after = round(16 * backward), round(16 * forward)
    assert len(result.frames) == before + frames + after
    assert np.array_equal(result.frames[before : before + frames], video.frames)
    assert result.metadata["verb"] == "extend"
    again = edit.extend(pipeline, video, "a ball", forward, backward, steps=1, seed=0)
    assert np.array_equal(result.frames, again.frames)
    other = edit.extend(pipeline, video, "a ball", forward, backward, steps=1, seed=1)
    assert not np.array_equal(result.frames, other.frames)


def test_what_is_painted_follows_from_what_is_known(pipeline: Pipeline) -> None:
    one, other = (edit.extend(pipeline, footage(13, seed=s), "a ball", 0.25, steps=2).frames[13:] for s in (0, 1))
    assert not np.array_equal(one, other)


def test_a_model_without_masks_is_held_by_replacement(micro_parts: Parts) -> None:
    config = replace(micro_parts.dit.config, masks=False)
    dit = DiT(config)
    torch.nn.init.normal_(dit.head.weight, std=0.1)
    pipeline = Pipeline(replace(micro_parts, dit=dit.eval()), device="cpu", dtype=torch.float32)
    one, other = (edit.extend(pipeline, footage(13, seed=s), "a ball", 0.25, steps=2) for s in (0, 1))
    assert one.metadata["known"] == "replacement"
    assert np.array_equal(one.frames[:13], footage(13).frames)
    assert not np.array_equal(one.frames[13:], other.frames[13:])  # what is painted follows from what is known

    seen = []
    forward = dit.forward
    pipeline.experts.dit.forward = lambda x, *rest, **more: seen.append((x, rest[2])) or forward(x, *rest, **more)  # type: ignore[method-assign]
    known = torch.full((16, 2, 4, 4), 2.0)
    condition = from_mask(known, (torch.arange(2) == 0).float()[None, :, None, None].expand(1, 2, 4, 4))
    drawing = Drawing.of(pipeline.request("a ball", frames=5, steps=4, guidance_scale=1))
    latents = pipeline.denoiser.sample(["a ball"], [3], drawing, condition)[0]
    assert torch.equal(latents[:, :1], known[:, :1])
    noise = patchify(torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(3)), config.patch)[0]
    for tokens, time in seen:
        assert time.unique().numel() == 1  # of all tokens, known or not
        held = (1 - time[0]) * 2.0 + time[0] * noise[:4]
        torch.testing.assert_close(tokens[:4], held)


def test_a_join_is_decoded_from_the_latents_of_its_clip(pipeline: Pipeline) -> None:
    """No second trip through the autoencoder: what stands before the join is encoded once and decoded with the rest."""
    canvas = timeline([CLIP.frames[:5], 4])
    request = pipeline.request("a ball", width=32, height=32, frames=9)
    decoded = np.stack(list(pipeline.reel.paint(canvas, request, keep=False)))
    expected = pipeline.codec.reconstruct(CLIP.frames[:5])
    assert int(np.abs(decoded[:5].astype(int) - expected).max()) <= 1


def test_loop_and_recut_and_blend_keep_what_they_should(pipeline: Pipeline) -> None:
    looped = edit.loop(pipeline, CLIP, "a ball", 0.3, steps=1).frames
    assert len(looped) == 13 + 8  # the next multiple of four
    assert np.array_equal(looped[:13], CLIP.frames)
    video = footage(48)
    cut = edit.recut(pipeline, video, [(0, 1), (1.5, 3)], "a ball", join=0.25, steps=1).frames
    assert len(cut) == 16 + 24
    assert np.array_equal(cut[:14], video.frames[:14])
    assert np.array_equal(cut[18:], video.frames[26:])
    assert not np.array_equal(cut[14:18], np.concatenate([video.frames[14:16], video.frames[24:26]]))
    hard = edit.recut(pipeline, video, [(0, 1), (1.5, 3)], "a ball", join=0).frames
    assert np.array_equal(hard, np.concatenate([video.frames[:16], video.frames[24:]]))
    b = footage(20, seed=3)
    blended = edit.blend(pipeline, CLIP, b, "a ball", 0.25, steps=2).frames
    assert len(blended) == 13 + 20 - 4
    assert np.array_equal(blended[:9], CLIP.frames[:9])
    assert np.array_equal(blended[13:], b.frames[4:])


@pytest.mark.parametrize("frames", [6, 9, 17, 18])
def test_interpolate_begins_and_ends_with_the_pictures(pipeline: Pipeline, frames: int) -> None:
    a, b = CLIP.frames[0], CLIP.frames[5]
    result = edit.interpolate(pipeline, a, b, "a ball", frames=frames, steps=1).frames
    assert len(result) == frames
    assert np.array_equal(result[0], a)
    assert np.array_equal(result[-1], b)
    held = sum(np.array_equal(frame, b) for frame in result)
    assert held == (frames - 2) % 4 + 1


def test_remix_goes_from_the_clip_to_something_new(pipeline: Pipeline) -> None:
    plain = pipeline.codec.reconstruct(CLIP.frames).astype(int)
    distance = [
        np.abs(edit.remix(pipeline, CLIP, "a ball", s, steps=8).frames.astype(int) - plain).mean()
        for s in (0.1, 0.5, 1)
    ]
    assert distance[0] < distance[1] < distance[2]
    three = edit.variations(pipeline, CLIP, "a ball", count=3, steps=2, seed=5)
    assert len(three.videos) == 3
    assert [three.record(i)["seed"] for i in range(3)] == [5, 6, 7]
    assert np.array_equal(three.videos[1], edit.remix(pipeline, CLIP, "a ball", 0.8, steps=2, seed=6).frames)


def test_inpaint_and_outpaint_touch_only_what_they_should(pipeline: Pipeline) -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:20, 4:31] = True
    result = edit.inpaint(pipeline, CLIP, mask, "a ball", steps=1).frames
    assert np.array_equal(result[:, ~mask], CLIP.frames[:, ~mask])
    assert not np.array_equal(result[:, mask], CLIP.frames[:, mask])
    moving = np.zeros((13, 32, 32), bool)
    moving[3:9, :16] = True
    result = edit.inpaint(pipeline, CLIP, moving, "a ball", steps=1).frames
    assert np.array_equal(result[~moving], CLIP.frames[~moving])
    wide = edit.outpaint(pipeline, CLIP, 70, 48, "a ball", steps=1).frames
    assert wide.shape == (13, 48, 70, 3)
    assert np.array_equal(wide[:, 8:40, 16:48], CLIP.frames)


def test_reencoded_pixels_are_the_autoencoders(pipeline: Pipeline) -> None:
    mask = np.zeros((32, 32), bool)
    mask[:8] = True
    result = edit.inpaint(pipeline, CLIP, mask, "a ball", steps=1, reencode=True).frames
    assert not np.array_equal(result[:, 8:], CLIP.frames[:, 8:])


@pytest.mark.parametrize("how", ["whole", "sliding", "long-range", "hierarchy"])
def test_long_videos_by_every_plan(pipeline: Pipeline, how: str) -> None:
    result = pipeline.generate("a ball", seconds=2, long=how, steps=1)
    assert result.frames.shape == (33, 32, 32, 3)
    assert np.array_equal(result.frames, pipeline.generate("a ball", seconds=2, long=how, steps=1).frames)
    started = pipeline.generate("a ball", seconds=2, long=how, steps=1, image=CLIP.frames[0])
    assert np.array_equal(started.frames[0], CLIP.frames[0])


BOARD = """
size: 32x32
seconds: 2.5
cards:
  - at: 0
    text: a red ball
  - at: 0.5
    text: a ball rolls
    image: picture.png
  - {at: 1.5, cut: true, text: red}
"""


def test_a_storyboard_shows_its_images_at_their_times(pipeline: Pipeline, tmp_path: Path) -> None:
    write_image(tmp_path / "picture.png", CLIP.frames[0])
    (tmp_path / "board.yaml").write_text(BOARD)
    result = storyboard(pipeline, read_board(tmp_path / "board.yaml"), steps=1)
    assert len(result.frames) == 41
    assert np.array_equal(result.frames[8], CLIP.frames[0])
    assert result.metadata["cards"][1] == {"at": 0.5, "text": "a ball rolls", "cut": False, "image": True}
    alone = pipeline.generate("red", frames=17, steps=1, seed=2, long="whole").frames
    assert np.array_equal(result.frames[24:], alone)  # after a cut nothing is remembered


def test_cards_of_one_take_are_painted_in_latents(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a card goes on from is what the card before it painted, not a second trip through the autoencoder."""
    board = Board((Card(0, "a ball rolls"), Card(0.5, "a ball jumps")), 1.0)
    seen = []
    sample = Denoiser.sample
    keep = lambda *a, **k: seen.append((a[1], list(a[6]))) or sample(*a, **k)  # noqa: E731
    monkeypatch.setattr(Denoiser, "sample", keep)
    encode = Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda *a: pytest.fail("encoded") if len(a[1]) else encode(*a))
    frames = storyboard(pipeline, board, steps=1, long="whole").frames
    assert len(frames) == 17
    assert seen == [(["a ball rolls"], [0, 1, 2]), (["a ball jumps"], [0, 1, 2, 3, 4])]  # frame 8 ends latent frame 2
    first = storyboard(pipeline, Board((Card(0, "a ball rolls"),), 0.5), steps=1, long="whole").frames
    assert np.array_equal(frames[:9], first)


@pytest.mark.parametrize(
    ("board", "message"),
    [
        ("cards: [{at: 0, text: a}, {at: 0, text: b}]", "card 2: at 0 is not after"),
        ("cards: [{at: 2, text: a}]", "begins at 0"),
        ("cards: [{at: 0, text: a}, {at: .nan, text: b}]", "card 2: at nan"),
        ("cards: [{at: 0, text: a}, {at: 3, text: b}]\nseconds: 2", "seconds: 2 ends before"),
        ("cards: [{at: 0}]", "needs a text or an image"),
        ("cards: [{at: 0, txt: a}]", "'txt' is unknown"),
        ("cards: []", "1 to 100"),
        ("cards: [{at: 0, text: a}]\nsize: 0x0", "size"),
        ("cards: [{at: 0, image: no.png}]", "no.png"),
        ("cards: [", "no YAML in line 1"),
        ("- 3", "expected size"),
        ("cards: [{at: 0, text: a, cut: 3}]", "neither true nor false"),
    ],
)
def test_boards_that_cannot_be(board: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text(board)
    with pytest.raises(UserError, match=message):
        read_board(tmp_path / "board.yaml")


def test_mistakes_are_told_with_the_nearest_valid_value(pipeline: Pipeline) -> None:
    cases = [
        (lambda: edit.extend(pipeline, CLIP, "", 0, 0), "nothing is added"),
        (lambda: edit.extend(pipeline, CLIP, "", -1), "nearest valid value is 0"),
        (lambda: edit.extend(pipeline, CLIP, "", float("nan")), "not a finite number"),
        (lambda: edit.blend(pipeline, CLIP, footage(9, 16, 16), ""), "nearest valid size is 32x32"),
        (lambda: edit.blend(pipeline, CLIP, CLIP, "", seconds=1), "nearest valid value is 0.75"),
        (lambda: edit.remix(pipeline, CLIP, "", 1.5), "nearest valid value is 1"),
        (lambda: edit.recut(pipeline, CLIP, [(0, 9)], ""), "nearest valid is 0:0.8125"),
        (lambda: edit.recut(pipeline, CLIP, [(0, 0.2), (0.5, 0.7)], "", 0.5), "nearest valid value is"),
        (lambda: edit.inpaint(pipeline, CLIP, np.ones((8, 9), bool), ""), "nearest valid size is 32x32"),
        (lambda: edit.inpaint(pipeline, CLIP, np.zeros((32, 32), bool), ""), "black"),
        (lambda: edit.outpaint(pipeline, CLIP, 16, 40, ""), "nearest valid size is 32x40"),
        (lambda: edit.interpolate(pipeline, CLIP.frames[0], CLIP.frames[1], "", frames=2), "nearest valid value is 6"),
        (lambda: pipeline.generate("a", long="slidng"), "nearest is sliding"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()


# ---- through the command line ------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(micro_parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edit")
    save_pretrained(micro_parts, folder / "model")
    write_video(folder / "a.mp4", CLIP.frames, 16, {"prompt": "a red ball"})
    write_video(folder / "b.mp4", footage(20, seed=2).frames, 16)
    write_image(folder / "a.png", CLIP.frames[0])
    write_image(folder / "b.png", CLIP.frames[1])
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[:16] = 255
    write_image(folder / "mask.png", mask)
    (folder / "board.yaml").write_text("cards: [{at: 0, text: a ball, image: a.png}]\nseconds: 0.5")
    return folder


VERBS = {
    "animate": ["a.png", "a ball"],
    "image": ["a ball"],
    "extend": ["a.mp4", "--forward", "0.25"],
    "loop": ["a.mp4"],
    "interpolate": ["a.png", "b.png"],
    "blend": ["a.mp4", "b.mp4"],
    "remix": ["a.mp4", "a ball"],
    "recut": ["b.mp4", "a ball", "--keep", "0:0.5,0.7:1.25", "--join", "0.25"],
    "inpaint": ["a.mp4", "--mask", "mask.png"],
    "outpaint": ["a.mp4", "--size", "48x32"],
    "variations": ["a.mp4", "--count", "2"],
    "storyboard": ["board.yaml"],
}

CLIP_A, PICTURE_A = ("a.mp4", "opened"), ("a.png", "input")
PARENTS = {verb: [CLIP_A] for verb in VERBS} | {
    "animate": [PICTURE_A],
    "image": [],
    "interpolate": [PICTURE_A, ("b.png", "input")],
    "blend": [CLIP_A, ("b.mp4", "placed")],
    "recut": [("b.mp4", "opened")],
    "inpaint": [CLIP_A, ("mask.png", "input")],
    "storyboard": [PICTURE_A],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_writes_its_file(
    verb: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    out = tmp_path / ("out.png" if verb == "image" else "out.mp4")
    words = [verb, *VERBS[verb], "-o", str(out), "--model", "model", "--steps", "1", "--json", "--sheet"]
    assert main(words) == 0, capsys.readouterr().err
    shown, err = capsys.readouterr()
    data = json.loads(shown)
    assert all(Path(file).exists() for file in data["output"])
    assert Path(data["sheet"]).exists()
    credentials = verify(out.with_stem("out-0") if verb == "variations" else out)
    assert credentials.state == "sound"
    assert [(parent["title"], parent["role"]) for parent in credentials.parents] == PARENTS[verb]
    if verb == "extend":
        assert "'a red ball'" in err
        assert read_provenance(out)["verb"] == "extend"
        assert len(read_video(out).frames) == 13 + 4
    assert main(words) == 2  # the file exists
    assert "exists" in capsys.readouterr().err


MISTAKES = {
    "extend a.mp4 --forward nan": "--forward nan",
    "extend missing.mp4": "VIDEO",
    "extend a.png --backward -1 --forward 0": "--backward",
    "remix a.mp4 red --strength 2": "--strength",
    "recut a.mp4 --keep 1-2": "--keep '1-2'",
    "recut a.mp4 --keep 0:5": "--keep 0:5",
    "inpaint a.mp4 --mask board.yaml": "--mask",
    "outpaint a.mp4 --size 0x0": "--size",
    "outpaint a.mp4 --size 16x16": "--size 16x16",
    "interpolate a.png a.mp4": "B",
    "animate a.png red --fps nan": "--fps",
    "image red --size 99999x4": "--size",
    "storyboard a.png": "BOARD",
    "extend a.mp4 --long slidng": "--long 'slidng'",
    "extend a.mp4 --steps 0": "--steps 0",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line_before_the_model_is_loaded(
    words: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("worldline.generate.load.load", lambda *a: pytest.fail("the model was loaded"))
    out = str(tmp_path / ("out.png" if words.startswith("image") else "out.mp4"))
    assert main([*words.split(), "-o", out, "--model", "model"]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert len(err) == 1
    assert MISTAKES[words] in err[0]
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_of_100_kb_is_refused(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "remix",
        str(place / "a.mp4"),
        "a" * 100_000,
        "-o",
        str(tmp_path / "o.mp4"),
        "--model",
        str(place / "model"),
    ]
    assert main(words) == 2
    assert "100000 characters" in capsys.readouterr().err
