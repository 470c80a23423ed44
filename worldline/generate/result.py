"""What `generate` returns: videos with their provenance, able to save themselves and to show in a notebook."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from worldline.generate.request import check_output, numbered
from worldline.media.preview import contact_sheet
from worldline.media.provenance import Parent
from worldline.media.write import write_clip, write_image, write_video


@dataclass(frozen=True)
class Result:
    """`videos`: uint8 (T, H, W, 3) each. `metadata` travels inside the files; `timings` are seconds per stage."""

    videos: list[np.ndarray]
    fps: Fraction
    metadata: Mapping[str, Any]
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def frames(self) -> np.ndarray:
        """The first video, uint8 (T, H, W, 3)."""
        return self.videos[0]

    def record(self, index: int) -> dict[str, Any]:
        """Provenance of one video, as if it had been made alone with its own seed."""
        return {**self.metadata, "seed": self.metadata["seed"] + index, "num_videos": 1}

    def save(self, path: str | Path, overwrite: bool = True, parents: Sequence[Parent] = ()) -> list[Path]:
        """Write every video, numbered when there are several, as .mp4, .gif, .webp, or a one-frame .png.

        `parents`: the files that it was made from, named in each file's manifest. Each file appears whole or not at
        all. Raises UserError as `check_output`, or for a full disk.
        """
        out = check_output(path, overwrite, len(self.frames), len(self.videos))
        files = numbered(out, len(self.videos))
        for index, (file, video) in enumerate(zip(files, self.videos, strict=True)):
            if file.suffix.lower() == ".png":
                write_image(file, video[0], self.record(index), overwrite, parents)
            else:
                write_clip(file, video, self.fps, self.record(index), overwrite, parents)
        return files

    def sheet(self) -> np.ndarray:
        """A contact sheet uint8 (H, W, 3), one row per video."""
        labels = [f"{self.metadata['prompt']}  (seed {self.record(i)['seed']})" for i in range(len(self.videos))]
        scale = max(1, 128 // max(self.frames.shape[1:3]))
        return contact_sheet(self.videos, labels, scale=scale)

    def save_sheet(self, path: str | Path, overwrite: bool = True) -> Path:
        """Write `sheet()` as a PNG."""
        write_image(path, self.sheet(), self.record(0), overwrite)
        return Path(path)

    def __repr__(self) -> str:
        frames, height, width = self.frames.shape[:3]
        size = f"{width}x{height}, {frames} frames at {float(self.fps):g} fps"
        return f"Result({len(self.videos)} x {size}, {self.metadata['prompt']!r})"

    def _repr_html_(self) -> str:
        """The videos inline, for a notebook."""
        return "\n".join(self._figure(index, video) for index, video in enumerate(self.videos))

    def _figure(self, index: int, video: np.ndarray) -> str:
        caption = html.escape(f"{self.metadata['prompt']} (seed {self.record(index)['seed']})")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "video.mp4"
            write_video(file, video, self.fps)
            data = base64.b64encode(file.read_bytes()).decode("ascii")
        source = f"data:video/mp4;base64,{data}"
        width = max(256, video.shape[2])
        return (
            f'<figure><video src="{source}" width="{width}" autoplay loop muted controls playsinline></video>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
