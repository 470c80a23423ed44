"""Writes clips and pictures (H.264 mp4, GIF, WebP, PNG, JPEG): whole or not at all, the same each time.

Every file is written beside its destination under a hidden name, signed where its record says that a model made it,
flushed to the disk and then renamed, so that a crash, a full disk or Ctrl-C leaves either the old file or none. Bytes
are equal but for the manifest of a signed file: C2PA salts it by chance.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from worldline.errors import UserError
from worldline.media.credentials import sign
from worldline.media.provenance import EXIF_DESCRIPTION, KEY, Parent, to_tags

VIDEO_SUFFIXES = (".mp4", ".gif", ".webp")
MAX_SIDE = 16384  # H.264 level 6.2
MIN_FPS, MAX_FPS = Fraction(1, 10), Fraction(1000)
ENCODER_THREADS = 4  # fixed, because x264's bytes depend on it; any machine then writes the same file
BT709, LIMITED_RANGE = 1, 1
# What a full disk, a read-only disk, a quota or a lost permission look like while writing.
DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENAMETOOLONG", "ENOENT")
    if hasattr(errno, name)
)


def check_writable(path: str | Path, overwrite: bool = True, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> Path:
    """The path, once it is certain that a file can be made there; costs nothing, so call it before long work.

    Raises UserError for a folder, a device, a missing or unwritable folder, another suffix than
    `suffixes`, a name that the disk refuses, and an existing file unless `overwrite`.
    """
    name = str(path)
    if "\0" in name or not name.strip():
        raise UserError("output: empty or with a NUL byte; use a file name such as video.mp4")
    target = Path(name)
    try:
        _check_target(target, overwrite, suffixes)
        # Permission bits do not tell (root, read-only disks, quotas): make a file and take it away.
        _make_temporary(target).unlink()
        if not os.path.lexists(target):  # the final name too: it can be longer than the disk allows
            target.touch()
            target.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error
    return target


def _check_target(target: Path, overwrite: bool, suffixes: tuple[str, ...]) -> None:
    if target.is_dir():
        raise UserError(f"output: {target} is a folder; use {target / ('video' + suffixes[0])}")
    if target.suffix.lower() not in suffixes:
        raise UserError(f"output: {target} must end in {' or '.join(suffixes)}; use {target.stem}{suffixes[0]}")
    if not target.parent.is_dir():
        raise UserError(f"output: folder {target.parent} does not exist; create it or use ./{target.name}")
    if os.path.lexists(target) and not overwrite:
        raise UserError(f"output: {target} exists; use {_free_name(target)} or allow overwriting")
    if target.exists() and not target.is_file():
        raise UserError(f"output: {target} is not a regular file; use ./video{suffixes[0]}")


def write_video(
    path: str | Path,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: float | Fraction,
    metadata: dict[str, Any] | None = None,
    crf: int = 14,
    overwrite: bool = True,
    parents: Sequence[Parent] = (),
) -> None:
    """H.264 mp4 (yuv420p, BT.709, faststart) of uint8 (T, H, W, 3), or of an iterator of (H, W, 3).

    The frame rate is exact, and so is the frame count. 4:2:0 video has even sides and H.264 can only crop
    it by two, so an odd side is widened by repeating its last row or column; `read_video` removes that
    again by the size kept in the record, other players show it. `metadata` are JSON values, see
    provenance.py, and `parents` what it was made from. Raises UserError as `check_writable`, for a full disk, no
    frames, or frames that are not all uint8 (H, W, 3) of one size.
    """
    check_writable(path, overwrite, (".mp4", ".m4v", ".mov"))
    rate = exact_rate(fps)
    with _atomic(path, metadata, parents) as temporary:
        _encode(temporary, _checked(frames), rate, metadata or {}, crf)


def write_growing(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    metadata: dict[str, Any] | None = None,
    crf: int = 14,
    overwrite: bool = True,
    parents: Sequence[Parent] = (),
) -> None:
    """As `write_video`, for frames that come slowly: until the last one `growing(path)` can be played as far as it is.

    It is written in fragments of a second (ISO/IEC 14496-12, 8.8) and copied, not encoded again, into the finished
    file. It stays behind where the frames break off.
    """
    target = check_writable(path, overwrite, (".mp4", ".m4v", ".mov"))
    rate, part = exact_rate(fps), growing(path)
    _encode(part, _checked(frames), rate, metadata or {}, crf, fragments=True)
    with _atomic(target, metadata, parents) as temporary:
        _copy(part, temporary)
    part.unlink()


def growing(path: str | Path) -> Path:
    """Where `write_growing` keeps what is finished so far: out.part.mp4 beside out.mp4."""
    return Path(path).with_suffix(f".part{Path(path).suffix}")


def write_gif(
    path: str | Path, frames: np.ndarray | Iterable[np.ndarray], fps: float | Fraction,
    metadata: dict[str, Any] | None = None, overwrite: bool = True, parents: Sequence[Parent] = (),
) -> None:  # fmt: skip
    """Looping GIF of uint8 (T, H, W, 3), times on its 10 ms grid without drift. Raises as write_video."""
    check_writable(path, overwrite, (".gif",))
    pictures = [_picture(frame) for frame in _checked(frames)]
    times = _durations(len(pictures), exact_rate(fps), grid=10)
    comment = to_tags(metadata)[KEY].encode() if metadata else b""
    extra: dict[str, Any] = {"comment": comment} if comment else {}
    with _atomic(path, metadata, parents) as temporary:
        pictures[0].save(temporary, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0, **extra)


def write_webp(
    path: str | Path, frames: np.ndarray | Iterable[np.ndarray], fps: float | Fraction,
    metadata: dict[str, Any] | None = None, overwrite: bool = True, parents: Sequence[Parent] = (), quality: int = 90,
) -> None:  # fmt: skip
    """Looping animated WebP of uint8 (T, H, W, 3), times on its 1 ms grid. Raises as write_video."""
    check_writable(path, overwrite, (".webp",))
    pictures = [_picture(frame) for frame in _checked(frames)]
    times = _durations(len(pictures), exact_rate(fps), grid=1)
    with _atomic(path, metadata, parents) as temporary:
        pictures[0].save(
            temporary, "WEBP", save_all=True, append_images=pictures[1:], duration=times, loop=0,
            quality=quality, method=4, exif=_exif(metadata),
        )  # fmt: skip


def write_image(
    path: str | Path, frame: np.ndarray, metadata: dict[str, Any] | None = None, overwrite: bool = True,
    parents: Sequence[Parent] = (),
) -> None:  # fmt: skip
    """One picture uint8 (H, W, 3) as .png, .jpg or .webp by its suffix. Raises as write_video."""
    from PIL.PngImagePlugin import PngInfo

    suffix = check_writable(path, overwrite, (".png", ".jpg", ".jpeg", ".webp")).suffix.lower()
    picture = _picture(next(_checked([frame])))
    with _atomic(path, metadata, parents) as temporary:
        if suffix == ".png":
            chunks = PngInfo()
            for key, value in (to_tags(metadata) if metadata else {}).items():
                chunks.add_text(key, value.encode("ascii", "backslashreplace").decode())
            picture.save(temporary, "PNG", pnginfo=chunks)
        elif suffix == ".webp":
            picture.save(temporary, "WEBP", lossless=True, exif=_exif(metadata))
        else:
            picture.save(temporary, "JPEG", quality=95, subsampling=0, exif=_exif(metadata))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Any other file, as whole as the rest. Raises UserError as write_video."""
    check_writable(path, True, (Path(path).suffix.lower(),))
    with _atomic(path) as temporary:
        temporary.write_bytes(data)


def write_clip(
    path: str | Path, frames: np.ndarray | Iterable[np.ndarray], fps: float | Fraction,
    metadata: dict[str, Any] | None = None, overwrite: bool = True, parents: Sequence[Parent] = (),
) -> None:  # fmt: skip
    """As mp4, GIF or WebP by the suffix of `path`. Raises as write_video."""
    suffix = check_writable(path, overwrite).suffix.lower()
    writer = {".mp4": write_video, ".gif": write_gif, ".webp": write_webp}[suffix]
    writer(path, frames, fps, metadata=metadata, overwrite=overwrite, parents=parents)  # type: ignore[operator]


def exact_rate(fps: float | Fraction) -> Fraction:
    """The frame rate as a fraction that mp4 can hold exactly. Raises UserError outside 0.1 to 1000."""
    if isinstance(fps, float) and not math.isfinite(fps):
        raise UserError(f"fps: {fps} is no frame rate; use a number from {float(MIN_FPS)} to {MAX_FPS}")
    rate = Fraction(fps).limit_denominator(100_000)
    if not MIN_FPS <= rate <= MAX_FPS:
        nearest = MIN_FPS if rate < MIN_FPS else MAX_FPS
        raise UserError(f"fps: {fps} is out of range; use {float(nearest):g}")
    return rate


# ---- encoding --------------------------------------------------------------------------------------


def _encode(
    path: Path,
    frames: Iterator[np.ndarray],
    rate: Fraction,
    metadata: dict[str, Any],
    crf: int,
    fragments: bool = False,
) -> None:
    import av
    from av.video.stream import VideoStream

    first = next(frames)
    height, width = first.shape[:2]
    record = {**metadata, "size": [width, height]}
    layout = "frag_keyframe+empty_moov+default_base_moof" if fragments else "faststart"
    options = {"movflags": f"{layout}+use_metadata_tags", "fflags": "+bitexact"}
    if fragments:
        options["flush_packets"] = "1"
    with av.open(f"file:{path}", "w", format="mp4", options=options) as container:
        container.metadata.update(to_tags(record))
        settings = {"crf": str(crf), "preset": "medium", "threads": str(ENCODER_THREADS)}
        # Without this x264's macroblock tree takes a SIMD path whose result depends on leftover heap contents.
        settings["x264-params"] = "cpu-independent=1"
        if fragments:
            settings["g"] = str(max(1, round(rate)))  # a key frame, and so a fragment, every second
        stream = container.add_stream("libx264", rate=rate, options=settings)
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context.time_base = 1 / rate
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        for index, frame in enumerate(itertools.chain([first], frames)):
            picture = _yuv(frame)
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _copy(source: Path, target: Path) -> None:
    """The packets and tags of one mp4 in another that can be played from its start."""
    import av

    options = {"movflags": "faststart+use_metadata_tags", "fflags": "+bitexact"}
    with av.open(f"file:{source}") as old, av.open(f"file:{target}", "w", format="mp4", options=options) as new:
        new.metadata.update({key: value for key, value in old.metadata.items() if key in (KEY, "comment")})
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def _yuv(frame: np.ndarray) -> Any:
    """BT.709 limited-range yuv420p av.VideoFrame, widened to even sides by its edge.

    Chroma sits on the left luma column of each pair and between its rows (MPEG-2 siting, what decoders
    assume), so the filter is [1 2 1] / 4 across and [1 1] / 2 down. swscale centres it instead, a shift
    that costs 1.4 to 1.8 dB on saturated edges.
    """
    from av import VideoFrame
    from av.video.reformatter import Interpolation

    height, width = frame.shape[:2]
    frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    how = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
    full = VideoFrame.from_ndarray(frame, "rgb24").reformat(
        format="yuv444p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE, interpolation=how
    )
    planes = full.to_ndarray()  # (3, H, W)
    rows = planes[1:, 0::2].astype(np.uint16) + planes[1:, 1::2]  # (2, H/2, W)
    rows = np.pad(rows, ((0, 0), (0, 0), (1, 1)), mode="edge")
    chroma = (rows[:, :, 0:-2:2] + 2 * rows[:, :, 1:-1:2] + rows[:, :, 2::2] + 4) // 8  # (2, H/2, W/2)
    packed = np.concatenate([planes[0].ravel(), chroma.astype(np.uint8).ravel()])
    return VideoFrame.from_ndarray(packed.reshape(-1, planes.shape[2]), "yuv420p")


def _checked(frames: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, each proven uint8 (H, W, 3) and as large as the first; at least one."""
    size: tuple[int, int] | None = None
    for frame in frames:
        if not isinstance(frame, np.ndarray):
            raise UserError(f"frames: each must be a uint8 array (H, W, 3), found {type(frame).__name__}")
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise UserError(f"frames: each must be uint8 (H, W, 3), found {frame.dtype} {frame.shape}")
        height, width = frame.shape[:2]
        size = size or (height, width)
        if (height, width) != size:
            raise UserError(f"frames: {width}x{height} after {size[1]}x{size[0]}; give frames of one size")
        if min(size) < 1 or max(size) > MAX_SIDE:
            raise UserError(f"frames: {width}x{height} cannot be stored; use sides of 1 to {MAX_SIDE}")
        yield frame
    if size is None:
        raise UserError("frames: there are none; give at least 1")


def _picture(frame: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(frame)


def _durations(count: int, rate: Fraction, grid: int) -> list[int]:
    """Milliseconds per frame, multiples of `grid`, whose sums stay within grid / 2 of the true times."""
    edges = [round(Fraction(1000 * i) / rate / grid) * grid for i in range(count + 1)]
    return [max(grid, after - before) for before, after in itertools.pairwise(edges)]


def _exif(metadata: dict[str, Any] | None) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    if metadata:
        exif[EXIF_DESCRIPTION] = to_tags(metadata)[KEY]
    return exif.tobytes() if metadata else b""


# ---- files -----------------------------------------------------------------------------------------


@contextmanager
def _atomic(path: str | Path, record: dict[str, Any] | None = None, parents: Sequence[Parent] = ()) -> Iterator[Path]:
    """A temporary file that is signed and becomes `path` when the block ends well, and vanishes when it does not."""
    target = Path(path).resolve()  # a link keeps pointing to the file that is replaced
    temporary: Path | None = None
    try:
        temporary = _make_temporary(target)
        yield temporary
        sign(temporary, target.name, record or {}, parents)
        sync(temporary)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:  # PyAV's errors are OSErrors too
        if error.errno not in DISK_ERRORS:
            raise
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _unwritable(path: str | Path, error: OSError) -> UserError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UserError(f"output: cannot write {str(path)[:200]} ({reason}); use another name or folder")


def _make_temporary(target: Path) -> Path:
    """A new empty file in the folder of `target`, with the permissions a plain open would give."""
    name = target.parent / f".{secrets.token_hex(8)}.part"
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return name


def sync(path: Path) -> None:
    """Waits for the disk to hold a file, or a folder's entries: a full one may only say so now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free_name(target: Path) -> str:
    free = (target.with_stem(f"{target.stem}-{i}") for i in itertools.count(1))
    return str(next(path for path in free if not path.exists()))
