"""Makes docs/gallery.md: one contact sheet per verb, each with the command that makes it.

python -m benchmarks.gallery [--out docs]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import tempfile
from pathlib import Path

import numpy as np

from worldline.cli import main as worldline
from worldline.media.read import read_video
from worldline.media.write import write_image

BOARD = """\
seconds: 3
cards:
  - at: 0
    text: a large green cylinder rolls to the right
  - at: 1
    text: a large green cylinder rolls to the left
  - at: 2
    cut: true
    text: a small purple ball bounces
"""
# What is shown, and the command; {sheet} is added to it. The files that a command reads were made by those above it.
PIECES = [
    ("Text to video", "generate 'a small red cube rises into the air' -o rise.mp4"),
    ("Text to picture", "image 'a large blue cylinder and a small yellow ball' -o picture.png"),
    ("A picture comes to life", "animate first.png 'a small red cube rises into the air' -o animated.mp4"),
    ("A clip goes on and begins earlier", "extend rise.mp4 --forward 0.5 --backward 0.5 -o extended.mp4"),
    ("A loop", "loop rise.mp4 -o loop.mp4"),
    ("From one picture to another", "interpolate first.png last.png 'a small red cube rises' -o between.mp4"),
    ("Another clip for the next two", "generate 'a large yellow ball rolls to the left slowly' -o roll.mp4 --seed 1"),
    ("One clip turns into another", "blend rise.mp4 roll.mp4 -o blend.mp4"),
    ("Another prompt", "remix roll.mp4 'a large green ball rolls to the left slowly' -o remix.mp4 --strength 0.8"),
    ("A longer clip for the next one", "generate 'a large pink cube spins' --seconds 2 -o spin.mp4"),
    ("A cut whose join is made anew", "recut spin.mp4 --keep 0:0.75,1.25:2 -o recut.mp4"),
    (
        "Part of the picture",
        "inpaint roll.mp4 'a large cyan ball rolls to the left slowly' --mask mask.png -o inpaint.mp4",
    ),
    ("A wider frame", "outpaint rise.mp4 --size 112x64 -o wide.mp4"),
    ("Other takes", "variations roll.mp4 --count 2 -o take.mp4"),
    ("A storyboard", "storyboard board.yaml -o board.mp4"),
    (
        "A world that is pushed",
        "rollout 'a large red ball moves on the floor' --pushes right:0.5,left:0.75,away:0.5,none:0.25 -o pushed.mp4",
    ),
]

LOOKED_AT = """\
Looked at, what is wrong in them: what moves is softer than what rests; the loop does not come back, so that it jumps
from the raised cube to the one on the floor; the blend goes from cube to ball within a frame; the remixed ball wears
off at its end; the storyboard's bouncing ball is smeared; the pushed ball follows its pushes but loses its shape.
"""  # of the shipped model; look again when another ships


def mask() -> np.ndarray:
    """White over the lower two thirds, where things roll."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[20:] = 255
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs", help="folder for gallery.md and images/gallery")
    out = Path(parser.parse_args().out).resolve()
    images = out / "images" / "gallery"
    images.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Gallery\n\nEvery verb with the shipped model, 64x64 at 16 frames a second: first takes, not picked, made by",
        "`python -m benchmarks.gallery`. `first.png` and `last.png` are the ends of `rise.mp4`; `mask.png` is white",
        "but for its upper 20 rows.\n",
        LOOKED_AT,
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("board.yaml").write_text(BOARD)
        write_image("mask.png", mask())
        for title, command in PIECES:
            words = shlex.split(command)
            sheet = images / f"{Path(words[words.index('-o') + 1]).stem}.png"
            if worldline([*words, "--sheet", os.fspath(sheet), "--overwrite"]):
                raise SystemExit(f"failed: worldline {command}")
            if command.startswith("generate 'a small red cube"):
                frames = read_video("rise.mp4").frames
                write_image("first.png", frames[0])
                write_image("last.png", frames[-1])
            board = f"\n```yaml\n{BOARD}```\n" if "board.yaml" in command else ""
            shown = f"```bash\nworldline {command}\n```\n{board}\n![{title}](images/gallery/{sheet.name})\n"
            parts.append(f"## {title}\n\n{shown}")
    (out / "gallery.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
