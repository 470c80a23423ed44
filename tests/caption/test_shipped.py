"""The shipped captioner names what is there, on worlds that it never saw, and captions are added by the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from worldline.caption.captioner import Shipped
from worldline.cli import main
from worldline.media.write import write_video
from worldline.records import MANIFEST, read_captions, write_manifest
from worldline.worlds.facts import facts_of, pairs, read_facts
from worldline.worlds.render import render
from worldline.worlds.scene import sample_scene


def test_objects_colours_counts_motion_and_camera_are_right() -> None:
    rngs = [np.random.default_rng([0x74657374, i]) for i in range(48)]
    scenes = [sample_scene(rng, "any") for rng in rngs]
    said = Shipped().describe([render(scene).frames for scene in scenes])
    marks: dict[str, list[bool]] = {}
    for scene, spoken in zip(scenes, said, strict=True):
        truth, read = facts_of(scene), read_facts(spoken.text)
        marks.setdefault("count", []).append(truth.count == read.count)
        marks.setdefault("camera", []).append(truth.camera == read.camera)
        for thing, other in pairs(truth.things, read.things):
            for name in ("colour", "shape", "motion"):
                marks.setdefault(name, []).append(other is not None and getattr(thing, name) == getattr(other, name))
    shares = {name: np.mean(values) for name, values in marks.items()}
    assert min(shares.values()) > 0.85, shares
    assert np.mean([value for values in marks.values() for value in values]) > 0.95, shares


def test_the_command_adds_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    from worldline.data.dataset import open_dataset

    (tmp_path / "videos").mkdir()
    for i in range(2):
        frames = render(sample_scene(np.random.default_rng(i))).frames
        write_video(tmp_path / "videos" / f"{i}.mp4", frames, 16)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    videos = open_dataset(tmp_path / "videos", lambda source, reason: None)
    write_manifest(tmp_path / MANIFEST, [example.clip for example in videos])
    assert main(["caption", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["captions"]) == 2
    held = read_captions(tmp_path / "captions.parquet")
    assert [c.text for c in held] == [c["text"] for c in said["captions"]]
    assert {(c.model, c.style) for c in held} == {("worldline-captioner", "full")}
    assert main(["caption", str(tmp_path), "--style", "both", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["captions"]) == 2  # the short ones
    assert read_captions(tmp_path / "captions.parquet")[:2] == held
    monkeypatch.chdir(tmp_path / "videos")
    assert main(["caption", ".", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["clips"], plan["missing"], len(plan["left_out"])) == (2, 2, 1)
    assert not Path("captions.parquet").exists()
    assert main(["caption", ".", "--style", "short", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == "captions.parquet"
    assert [len(e.captions) for e in open_dataset(".", lambda source, reason: None)] == [1, 1]
    assert [e.captions for e in open_dataset(tmp_path)] != [(), ()]


def test_rewrite_and_generate_tell_what_the_prompt_became(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from worldline.media.provenance import read_provenance

    assert main(["rewrite", "a scarlet die plummets", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    out = tmp_path / "out.mp4"
    assert (
        main(["generate", "a scarlet die plummets", "--rewrite", "--steps", "1", "--frames", "5", "-o", str(out)]) == 0
    )
    assert f"the prompt became: {text}" in capsys.readouterr().err
    record = read_provenance(out)
    assert (record["prompt"], record["rewritten_from"]) == (text, "a scarlet die plummets")
    assert main(["generate", "a red ball", "--steps", "1", "--frames", "5", "-o", str(tmp_path / "plain.mp4")]) == 0
    assert "rewritten_from" not in read_provenance(tmp_path / "plain.mp4")
