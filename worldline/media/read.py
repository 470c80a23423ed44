"""Reads anyone's video or picture into `uint8 (T, H, W, 3)` RGB, the way a player would show it.

Display rotation and mirroring, non-square pixels, colour matrix and range, alpha and bit depth are
resolved here; a variable frame rate becomes a constant one (nearest timestamp). Sizes are checked
from the header, before anything large is decoded. High dynamic range is not tone-mapped.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from worldline.errors import UserError
from worldline.media.provenance import from_tags

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL import Image

MAX_PIXELS = 1 << 26  # per frame: 8192 x 8192
MAX_BYTES = 8 << 30  # decoded clip held in memory by read_video
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
BACKGROUND = (255, 255, 255)  # what shows through alpha: white, as on a page
# Playlist formats (hls, concat, dash ...) are left out: they make a text file open other files and addresses.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,apng,asf,h264,hevc,av1,obu,ivf,"
    "yuv4mpegpipe,m4v,mxf,nut,rm,dv,swf,wtv,vc1,mjpeg,gif"
)
ITU709, UNSPECIFIED = 1, 2
# Start and duration in seconds (None, 0 where the file does not say) and pixels uint8 (H, W, 3).
Timed = tuple[Fraction | None, Fraction, np.ndarray]
Turn = tuple[bool, bool, bool]  # rows and columns change places; then left and right; then top and bottom


@dataclass(frozen=True)
class Info:
    """What a file says of itself; width and height are those shown (rotation and pixel shape applied)."""

    width: int
    height: int
    fps: Fraction
    frames: int | None  # as the header counts them
    seconds: float | None
    codec: str
    pixel_format: str
    has_audio: bool
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Video:
    """A decoded clip: frames uint8 (T, H, W, 3), its constant frame rate and the container's tags."""

    frames: np.ndarray
    fps: Fraction
    metadata: dict[str, str] = field(default_factory=dict)


def read_video(
    path: str | Path,
    max_frames: int | None = None,
    max_pixels: int = MAX_PIXELS,
    fps: Fraction | None = None,
    max_bytes: int = MAX_BYTES,
) -> Video:
    """Decodes a whole clip. `fps` asks for another constant rate than the file's own.

    Raises UserError when the file is missing, is no video, has no frame, or when a frame has more than
    `max_pixels` pixels or the clip more than `max_bytes` bytes.
    """
    info = probe(path, max_pixels)
    rate = fps or info.fps
    frames: list[np.ndarray] = []
    held = 0
    for frame in iter_frames(path, max_pixels=max_pixels, fps=rate):
        if max_frames is not None and len(frames) >= max_frames:
            break
        held += frame.nbytes
        if held > max_bytes:
            raise UserError(f"{path}: over {max_bytes} bytes decoded; use max_frames {len(frames)} or less")
        frames.append(frame)
    if not frames:
        raise UserError(f"{path}: max_frames {max_frames} leaves no frame; use 1 or more")
    return Video(np.stack(frames), rate, info.metadata)


def iter_frames(path: str | Path, max_pixels: int = MAX_PIXELS, fps: Fraction | None = None) -> Iterator[np.ndarray]:
    """Frames uint8 (H, W, 3) one by one at a constant rate, in constant memory. Raises as `read_video`."""
    if _is_picture(path):
        yield from _at_rate(_picture_frames(path, max_pixels), fps or probe(path, max_pixels).fps)
        return
    with open_container(path, max_pixels) as container:
        stream = container.streams.video[0]
        yield from _at_rate(_timed_frames(container, stream, path, max_pixels), fps or rate_of(stream))


def probe(path: str | Path, max_pixels: int = MAX_PIXELS) -> Info:
    """What the header and the first frame say. Raises UserError for anything that is not a readable video."""
    if _is_picture(path):
        return _probe_picture(path, max_pixels)
    with open_container(path, max_pixels) as container:
        stream = container.streams.video[0]
        rate = rate_of(stream)
        *_, first = next(_timed_frames(container, stream, path, max_pixels))
        seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
        if seconds is None and container.duration:
            seconds = container.duration / 1e6
        return Info(
            width=first.shape[1],
            height=first.shape[0],
            fps=rate,
            frames=stream.frames or None,
            seconds=seconds,
            codec=stream.codec_context.name,
            pixel_format=stream.codec_context.pix_fmt or "unknown",
            has_audio=bool(container.streams.audio),
            metadata={**stream.metadata, **container.metadata},
        )


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture uint8 (H, W, 3): EXIF rotation applied, alpha laid on white, 16 bit scaled to 8."""
    with open_picture(path, max_pixels) as picture:
        return _picture_rgb(picture, path)


def open_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A Pillow image whose header was read and whose size was checked; pixels are not decoded yet."""
    from PIL import Image, UnidentifiedImageError

    _require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path}: picture is too large; use at most {max_pixels} pixels") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable picture; use a PNG, JPEG or WebP file") from error
    try:
        _check_size(path, picture.width, picture.height, max_pixels)
    except UserError:
        picture.close()
        raise
    return picture


# ---- video through PyAV ----------------------------------------------------------------------------


def open_container(path: str | Path, max_pixels: int) -> InputContainer:
    import av

    _require_file(path)
    av.logging.set_level(None)  # decoders print to stderr; what matters is raised below
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "max_pixels": str(max_pixels)}
    try:
        container = av.open(f"file:{path}", "r", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable video; use a file such as .mp4, .webm or .mov") from error
    # A cover picture inside an audio file is listed as a video stream.
    moving = [s for s in container.streams.video if "attached_pic" not in str(s.disposition)]
    if not moving or moving[0] is not container.streams.video[0]:
        container.close()
        raise UserError(f"{path}: has no video stream; use a file with moving pictures")
    context = moving[0].codec_context
    try:
        _check_size(path, context.width, context.height, max_pixels)
    except UserError:
        container.close()
        raise
    moving[0].thread_type = "AUTO"
    return container


def rate_of(stream: VideoStream) -> Fraction:
    """The constant rate a file is read at: the grid of its timestamps if plausible, else the average.

    `base_rate` is the coarsest grid on which all timestamps lie. For truly variable files that grid is
    far finer than the frames are (thousands per second), and the average is the honest answer.
    """
    grid, average = stream.base_rate, stream.average_rate
    if grid and grid > 0 and (not average or average <= grid <= average * Fraction(3, 2)):
        return Fraction(grid)
    if average and average > 0:
        return Fraction(average)
    return Fraction(25)


def _timed_frames(container: InputContainer, stream: VideoStream, path: str | Path, max_pixels: int) -> Iterator[Timed]:
    """Frames in display order; damaged packets are skipped as players do, but not a whole file."""
    size: tuple[int, int] | None = None
    last_error: Exception | None = None
    for frame in decoded(container, stream):
        if isinstance(frame, Exception):
            last_error = frame
            continue
        _check_size(path, frame.width, frame.height, max_pixels)
        size = size or shown_size(stream, frame)
        pixels = np.ascontiguousarray(upright(_rgb(frame, *size), turn_of(frame, stream)))
        pixels = _crop_to_record(pixels, container.metadata)
        tick = frame.time_base or Fraction(0)
        time = frame.pts * tick if frame.pts is not None and tick else None
        yield time, (frame.duration or 0) * tick, pixels
    if size is None:
        reason = "no frame could be decoded" if last_error else "has no frame"
        raise UserError(f"{path}: {reason}; use a complete video file") from last_error


def decoded(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | Exception]:
    """Frames, and the errors met between them (a truncated file ends with one)."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, OSError) as error:
            yield error
            return
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, OSError) as error:
            yield error


def shown_size(stream: VideoStream, frame: av.VideoFrame) -> tuple[int, int]:
    """(width, height) with square pixels, as anamorphic footage is shown."""
    aspect = stream.sample_aspect_ratio
    if not aspect or aspect <= 0 or not Fraction(1, 8) <= aspect <= 8:
        return frame.width, frame.height
    return max(1, round(frame.width * aspect)), frame.height


def _rgb(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """Pixels uint8 (H, W, 3); alpha is laid on white. Untagged HD is BT.709, as players assume."""
    from av.video.reformatter import Interpolation

    has_alpha = any(component.is_alpha for component in frame.format.components)
    untagged_hd = frame.colorspace == UNSPECIFIED and frame.height >= 720 and not frame.format.is_rgb
    how = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    picture = frame.reformat(
        width=width,
        height=height,
        format="rgba" if has_alpha else "rgb24",
        src_colorspace=ITU709 if untagged_hd else None,
        interpolation=how,
    )
    pixels = picture.to_ndarray()
    return _over_background(pixels) if has_alpha else pixels


def _over_background(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[..., 3:].astype(np.float32) / 255
    blended = pixels[..., :3] * alpha + np.asarray(BACKGROUND, np.float32) * (1 - alpha)
    return np.round(blended).astype(np.uint8)


def turn_of(frame: av.VideoFrame, stream: VideoStream) -> Turn:
    """The display matrix (ISO 14496-12, 8.5.2: x' = a x + c y, y' = b x + d y) in quarter turns."""
    from av.sidedata.sidedata import Type

    matrix = cast(Any, frame.side_data).get(Type.DISPLAYMATRIX)
    if matrix is not None:
        a, b, _, c, d = struct.unpack("=9i", bytes(matrix)[:36])[:5]
    else:  # older files carry clockwise degrees as a tag instead
        quarter = {"90": (0, 1, -1, 0), "180": (-1, 0, 0, -1), "270": (0, -1, 1, 0)}
        a, b, c, d = quarter.get(stream.metadata.get("rotate", ""), (1, 0, 0, 1))
    swapped = abs(b) > abs(a)
    right, down = (c, b) if swapped else (a, d)
    return swapped, right < 0, down < 0


def upright(pixels: np.ndarray, turn: Turn) -> np.ndarray:
    """A view of `pixels` (H, W, ...) as a player shows them."""
    swapped, mirrored, upside_down = turn
    if swapped:
        pixels = pixels.swapaxes(0, 1)
    if mirrored:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if upside_down else pixels


def _crop_to_record(pixels: np.ndarray, tags: dict[str, str]) -> np.ndarray:
    """Removes the one-pixel edge that write_video adds to odd sizes (4:2:0 cannot hold or crop to them)."""
    size = from_tags(tags).get("size")
    if isinstance(size, list) and len(size) == 2:
        width, height = size
        if pixels.shape[1] - width in (0, 1) and pixels.shape[0] - height in (0, 1):
            return pixels[:height, :width]
    return pixels


def _at_rate(timed: Iterator[Timed], fps: Fraction) -> Iterator[np.ndarray]:
    """Resamples to times k / fps after the first frame, taking the frame nearest in time (ties: the earlier).

    A file that already has this rate passes through unchanged; the last frame lasts as long as the file says.
    """
    step = 1 / fps
    held: np.ndarray | None = None
    start = held_time = held_end = Fraction(0)
    k = 0
    for time, duration, frame in timed:
        if held is None:
            start = time or Fraction(0)
            time = start
        else:
            time = held_time + step if time is None or time <= held_time else time
            while start + k * step <= (held_time + time) / 2:
                yield held
                k += 1
        held, held_time, held_end = frame, time, time + max(duration, step)
    while held is not None and start + k * step < held_end - step / 2:
        yield held
        k += 1


# ---- pictures through Pillow -----------------------------------------------------------------------


def _is_picture(path: str | Path) -> bool:
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def _require_file(path: str | Path) -> None:
    name = str(path)
    if "\0" in name:
        raise UserError("path: holds a NUL byte; use a plain file name")
    if Path(name).is_dir():
        raise UserError(f"{name}: is a folder; give a file")
    if not Path(name).is_file():
        raise UserError(f"{name}: no such file")


def _check_size(path: str | Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UserError(f"{path}: {width}x{height} is too large; use at most {max_pixels} pixels a frame")


def _picture_rgb(picture: Image.Image, path: str | Path) -> np.ndarray:
    from PIL import ImageOps

    try:
        turned = ImageOps.exif_transpose(picture)
        if turned.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scaling
            grey = np.clip(np.asarray(turned).astype(np.int64) / 257, 0, 255).round().astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return _over_background(np.asarray(turned.convert("RGBA")))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: damaged picture; use a complete PNG, JPEG or WebP file") from error


def _picture_frames(path: str | Path, max_pixels: int) -> Iterator[Timed]:
    """Frames of a still or animated picture."""
    with open_picture(path, max_pixels) as picture:
        time = Fraction(0)
        for index in range(getattr(picture, "n_frames", 1)):
            try:
                picture.seek(index)
            except (EOFError, OSError):
                return
            frame = _picture_rgb(picture, path)
            duration = Fraction(_milliseconds(picture)) / 1000
            yield time, duration, frame
            time += duration


def _milliseconds(picture: Image.Image) -> int:
    return int(cast(Any, picture.info.get("duration", 0))) or 100


def _probe_picture(path: str | Path, max_pixels: int) -> Info:
    times = []
    with open_picture(path, max_pixels) as picture:
        count = getattr(picture, "n_frames", 1)
        for index in range(count):
            picture.seek(index)
            picture.load()  # WebP knows a frame's duration only now
            times.append(_milliseconds(picture))
        fps = (Fraction(1000 * count) / sum(times)).limit_denominator(1001)
        codec, mode = (picture.format or "unknown").lower(), picture.mode
        picture.seek(0)
        height, width = _picture_rgb(picture, path).shape[:2]
    return Info(width, height, fps, count, sum(times) / 1000, codec, mode, False, {})
