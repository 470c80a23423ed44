"""The command line: every mistake ends in one line and exit code 2, before anything is loaded or written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worldline.cli import build_parser, main, normalised
from worldline.cli.parser import recipe
from worldline.errors import UserError

LONG = "a ball " * 15_000  # 105 kB


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skeleton: Callable[[Path], Path]) -> Path:
    """An empty working folder beside a model folder whose headers are sound but whose weights fit nothing."""
    skeleton(tmp_path / "model")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def generate(*words: str, model: str = "../model") -> list[str]:
    return ["generate", *words, "--model", model]


BAD = {
    "empty prompt": (generate(""), "PROMPT"),
    "blank prompt": (generate("  \n"), "PROMPT"),
    "100 kB prompt": (generate(LONG), "32000"),
    "NUL in prompt": (generate("a\0b"), "NUL"),
    "not UTF-8": (generate("a \udcff ball"), "UTF-8"),
    "long negative prompt": (generate("a ball", "--negative-prompt", LONG), "--negative-prompt"),
    "size 0": (generate("a ball", "--size", "0"), "16x16"),
    "size 0x0": (generate("a ball", "--size", "0x0"), "--size"),
    "size -1": (generate("a ball", "--size", "-1"), "16x16"),
    "size -1x64": (generate("a ball", "--size=-1x64"), "--size"),
    "size 7x5": (generate("a ball", "--size", "7x5"), "16x16"),
    "size 100000x100000": (generate("a ball", "--size", "100000x100000"), "4096x4096"),
    "size words": (generate("a ball", "--size", "big"), "64x64"),
    "size 9x9x9": (generate("a ball", "--size", "9x9x9"), "--size"),
    "size too long to draw": (generate("a ball", "--size", "4096x4096", "--seconds", "9"), "--seconds"),
    "seconds 0": (generate("a ball", "--seconds", "0"), "0.0625"),
    "seconds -1": (generate("a ball", "--seconds", "-1"), "--seconds"),
    "seconds NaN": (generate("a ball", "--seconds", "NaN"), "--seconds"),
    "seconds inf": (generate("a ball", "--seconds", "inf"), "--seconds"),
    "seconds 1e9": (generate("a ball", "--seconds", "1e9"), "3600"),
    "seconds words": (generate("a ball", "--seconds", "long"), "--seconds"),
    "seconds and frames": (generate("a ball", "--seconds", "1", "--frames", "9"), "--frames"),
    "frames 0": (generate("a ball", "--frames", "0"), "1"),
    "fps 0": (generate("a ball", "--fps", "0"), "0.1"),
    "fps NaN": (generate("a ball", "--fps", "nan"), "--fps"),
    "fps 1/0": (generate("a ball", "--fps", "1/0"), "--fps"),
    "steps 0": (generate("a ball", "--steps", "0"), "--steps"),
    "steps 1.5": (generate("a ball", "--steps", "1.5"), "--steps"),
    "guidance NaN": (generate("a ball", "--guidance-scale", "nan"), "--guidance-scale"),
    "rescale 2": (generate("a ball", "--guidance-rescale", "2"), "--guidance-rescale"),
    "interval backwards": (generate("a ball", "--guidance-interval", "0.9,0.1"), "0.1,0.9"),
    "interval of one": (generate("a ball", "--guidance-interval", "0.9"), "--guidance-interval"),
    "unknown sampler": (generate("a ball", "--sampler", "heunn"), "heun"),
    "guidance -1": (generate("a ball", "--guidance-scale=-1"), "--guidance-scale"),
    "seed -1": (generate("a ball", "--seed=-1"), "--seed"),
    "seed 2**64": (generate("a ball", "--seed", str(2**64)), "--seed"),
    "no videos": (generate("a ball", "--num-videos", "0"), "--num-videos"),
    "output is a folder": (generate("a ball", "-o", "."), "output"),
    "output in no folder": (generate("a ball", "-o", "none/out.mp4"), "none"),
    "output under a file": (generate("a ball", "-o", "../model/model_index.json/out.mp4"), "output"),
    "output in /proc": (generate("a ball", "-o", "/proc/out.mp4"), "output"),
    "output named .exe": (generate("a ball", "-o", "out.exe"), ".mp4"),
    "output with NUL": (generate("a ball", "-o", "a\0.mp4"), "NUL"),
    "output name too long": (generate("a ball", "-o", "x" * 300 + ".mp4"), "output"),
    "video as .png": (generate("a ball", "-o", "out.png"), "--frames 1"),
    "sheet as .mp4": (generate("a ball", "--sheet", "sheet.mp4"), "sheet.png"),
    "no model": (generate("a ball", model="nowhere"), "--model"),
    "model is a file": (generate("a ball", model="../model/model_index.json"), "--model"),
    "model is no model": (generate("a ball", model=".."), "../model"),
    "model path with NUL": (generate("a ball", model="a\0b"), "NUL"),
    "no image": (generate("a ball", "--image", "none.png"), "--image"),
    "image is a folder": (generate("a ball", "--image", "."), "--image"),
    "unknown flag": (generate("a ball", "--guidanse-scale", "5"), "--guidance-scale"),
    "unquoted prompt": (generate("a", "ball"), "quotes"),
    "another verb's flag": (generate("a ball", "--out", "x.mp4"), "did you mean --output?"),
    "unknown verb": (["generat"], "generate"),
    "no prompt": (["generate"], "PROMPT"),
    "worlds n 0": (["worlds", "render", "--n", "0"], "--n"),
    "worlds sheet": (["worlds", "render", "--sheet", "none/sheet.png"], "output"),
    "verify nothing": (["worlds", "verify", "none.mp4"], "VIDEO"),
    "eval without a model": (["eval", "worlds", "--model", "nowhere"], "nowhere"),
    "eval n 0": (["eval", "worlds", "--n", "0"], "--n"),
    "eval verbs unknown": (["eval", "verbs", "--verbs", "animate,melt"], "one of animate"),
    "eval verbs none": (["eval", "verbs", "--verbs", ""], "one of animate"),
    "eval verbs too small": (["eval", "verbs", "--size", "64x16"], "64x32"),
    "unknown recipe": (["train", "vae", "--recipe", "tinny"], "tiny"),
    "recipe of nothing": (["train", "vae", "--recipe", "mine.py"], "mine.py"),
    "unknown setting": (["train", "vae", "--set", "optim.lrr=1"], "lr"),
    "info of nothing": (["info", "nowhere"], "nowhere"),
    "export of nothing": (["export", "--dit", "none", "--out", "m"], "--dit"),
}


@pytest.mark.parametrize(("words", "named"), BAD.values(), ids=BAD.keys())
def test_mistakes_end_in_one_line(
    words: list[str], named: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("worldline: ")
    assert named in err
    assert "Traceback" not in err
    assert len(err) < 500
    assert list(place.iterdir()) == []  # nothing was written, not even half


def test_a_recipe_may_be_a_file_of_ones_own(place: Path) -> None:
    (place / "mine.py").write_text(
        "from dataclasses import replace\nfrom worldline.recipes import tiny\n"
        "def dit():\n    return replace(tiny.dit(), name='mine', batch=2)\n"
    )
    assert (recipe("mine.py", "dit").name, recipe("mine.py", "dit").batch) == ("mine", 2)
    with pytest.raises(UserError, match=r"mine\.py: has no plan for `vae`"):
        recipe("mine.py", "vae")
    (place / "mine.py").write_text("def dit(:")
    with pytest.raises(UserError, match=r"mine\.py: cannot be run \(SyntaxError"):
        recipe("mine.py", "dit")


def test_existing_output_is_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out.mp4").write_bytes(b"mine")
    assert main(generate("a ball")) == 2
    assert "exists" in capsys.readouterr().err
    assert (place / "out.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("fake.png", generate("a ball", "--image", "fake.png")),
        ("fake.mp4", ["worlds", "verify", "fake.mp4"]),
    ],
)
def test_text_in_disguise(file: str, words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / file).write_text("This is a text, whatever its name says.\n" * 9)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert file in err
    assert [path.name for path in place.iterdir()] == [file]


def test_dry_run_prints_the_plan_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = generate("a ball", "--dry-run", "--json", "--size", "70x50", "--seconds", "2", "--num_videos", "2")
    assert main(words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["width"], plan["height"], plan["frames"]) == (70, 50, 33)
    assert plan["tokens"] == 9 * 5 * 4  # 33 frames, 80x64 padded, in patches of 4x16x16
    assert plan["output"] == ["out-0.mp4", "out-1.mp4"]
    assert list(place.iterdir()) == []


def test_far_sizes_get_a_note(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(generate("a ball", "--dry-run", "--size", "640x480")) == 0
    assert "trained on 64x64" in capsys.readouterr().err
    assert main(generate("a ball", "--dry-run")) == 0
    assert capsys.readouterr().err == ""


def test_underscores_are_dashes_in_flags_only() -> None:
    words = ["generate", "a_b", "--guidance_scale=2", "--num_videos", "3", "--negative_prompt", "x_y", "--", "--c_d"]
    args = ["generate", "a_b", "--guidance-scale=2", "--num-videos", "3", "--negative-prompt", "x_y", "--", "--c_d"]
    assert normalised(words) == args
    parsed = build_parser().parse_args(normalised(words[:-2]))
    assert (parsed.guidance_scale, parsed.num_videos, parsed.negative_prompt) == (2.0, 3, "x_y")


def test_help_needs_no_torch() -> None:
    """So that it answers at once."""
    code = "import sys; from worldline.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'av'} & set(sys.modules), sys.modules.keys()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "generate" in run.stdout


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "--size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "--size"),
        (OSError(28, "No space left on device"), 2, "No space left"),
    ],
)
def test_what_the_machine_refuses_is_one_line_too(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise error

    monkeypatch.setattr("worldline.cli.models.run_info", refuse)
    assert main(["info"]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("worldline.cli.models.run_info", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["info"])


def test_info_counts_what_the_headers_say(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "../model", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["parameters"] == 18
    assert main(["info", "../model"]) == 0
    assert data["hash"][:16] in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "from worldline.cli import main; raise SystemExit(main(['--help']))"
    with os.fdopen(write, "w") as stdout:
        run = subprocess.run(
            [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )
    assert "Traceback" not in run.stderr


def test_worlds_render_writes_sheet_and_clips(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["worlds", "render", "--n", "2", "--size", "32x32", "--seconds", "0.25", "--sheet", "s.png", "-o", "clips"]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["captions"]) == 2
    assert sorted(path.name for path in place.rglob("*.*")) == ["s.png", "world-0000.mp4", "world-0001.mp4"]


def test_verify_names_what_was_rendered(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worlds", "render", "--n", "1", "--seed", "0", "-o", "clips"]) == 0
    assert "to the left goes a red box while a turquoise tin goes up" in capsys.readouterr().out
    assert main(["worlds", "verify", "clips/world-0000.mp4", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    found = {(thing["colour"], thing["shape"], thing["motion"]) for thing in seen["objects"]}
    assert found == {("red", "cube", "left"), ("cyan", "cylinder", "rise")}
    assert (seen["count"], seen["camera"]) == (2, "static")


def test_eval_judges_a_model(micro_parts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from worldline.checkpoints.folder import save_pretrained

    model = save_pretrained(micro_parts, tmp_path / "model")
    words = ["eval", "worlds", "--model", str(model), "--n", "2", "--json", "--out", str(tmp_path / "report")]
    assert main(words) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rates"]["model"]["everything"]["all"]["total"] == 2
    assert "ceiling: autoencoder" in data["rates"]
    assert (tmp_path / "report/report.json").is_file()
