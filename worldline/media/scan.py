"""One pass over a video for those who measure it: every frame small, its full luma on request, its damage counted.

A file is decoded once, from its start to its end, on one thread; whatever wants to look at it shares the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldline.media.read import MAX_PIXELS, Turn, decoded, open_container, rate_of, shown_size, turn_of, upright

if TYPE_CHECKING:
    from av import VideoFrame

# These decoders hide damage unless they are told to stop at it; the others mark the frames that they patched. Checksums
# are where an encoder wrote them: of every slice in FFV1 from version 3 on, of every picture in HEVC (x265's `hash`).
SILENT_DECODERS = frozenset({"hevc", "mjpeg", "ffv1", "vp9", "av1", "libdav1d"})
# libvpx notices where a tile of VP9 reads beyond its end, as most damage makes it; libavcodec's own decoder does not.
STRICTER = {"vp9": "libvpx-vp9"}
# Every packet of theirs shows exactly one frame; decoders pass over what they cannot use without a word.
ONE_EACH = frozenset({"vp9", "av1", "libdav1d"})


@dataclass(frozen=True)
class Header:
    """What a file claims before a frame is decoded. Zero and empty stand for what it does not say."""

    container: str
    codec: str
    pixel_format: str
    bit_depth: int
    rate: Fraction  # the constant one at which `media.read` reads it
    frames: int
    seconds: float  # the longest claim of the file
    video_seconds: float  # the claim for its pictures
    colour: str  # matrix/transfer/range
    audio: str


@dataclass(frozen=True)
class Seen:
    """One frame of the pass, upright and with square pixels."""

    index: int
    seconds: float  # after the first frame
    picture: np.ndarray  # uint8 (h, w, 3) BGR, its short side as the scan was told
    size: tuple[int, int]  # width and height as shown
    turn: Turn
    frame: VideoFrame

    def sized(self, short_side: int) -> np.ndarray:
        """The picture with another short side, uint8 (h, w, 3) BGR; never larger than it is."""
        from av.video.reformatter import Interpolation

        shown = (self.size[1], self.size[0]) if self.turn[0] else self.size
        reduced = self.frame.reformat(*_small(*shown, short_side), "bgr24", interpolation=Interpolation.AREA)
        return np.ascontiguousarray(upright(reduced.to_ndarray(), self.turn))

    def luma(self) -> np.ndarray:
        """All luma samples as shown, uint8 (H, W), full range; W or H differs from `size` if pixels are not square."""
        return upright(_luma(self.frame), self.turn)


class Scan:
    """A pass over one file: iterate once, then read what was counted.

    Raises UserError when the file is missing or not a readable video; what goes wrong after that is counted.
    """

    def __init__(self, path: str | Path, short_side: int, max_pixels: int = MAX_PIXELS) -> None:
        self.container = open_container(path, max_pixels)
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "NONE"
        if self.stream.codec_context.name in SILENT_DECODERS:  # a checksum is that of a finished picture
            self.stream.codec_context.options = {"err_detect": "explode+crccheck"}
        else:  # edges of blocks stay in frames that no other needs: unseen in small ones, a fifth of the decoder's time
            self.stream.codec_context.options = {"skip_loop_filter": "noref"}
        self.short_side, self.max_pixels = short_side, max_pixels
        self.header = _header(self.container, self.stream)
        self.decoder, self._front = _stricter(self.stream), None
        if self.decoder is not self.stream.codec_context:
            self._front = _first_frame(path, max_pixels)  # another decoder is not told how the file is turned
        self.rotation = 0  # clockwise degrees
        self.size = (0, 0)  # width and height as shown
        self.damaged = 0  # packets that did not decode, and frames that the decoder patched
        self.times: list[float] = []  # seconds after the first frame, one per frame
        self.end = 0.0  # when the last frame stops being shown
        self.cut_short = False  # the file ends in the middle of something

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[Seen]:
        from av.video.reformatter import Interpolation, VideoReformatter

        reformatter = VideoReformatter()
        shown: tuple[int, int] | None = None
        first: float | None = None
        step, tick = float(1 / self.header.rate), float(self.stream.time_base or 0)
        for frame in self._frames():
            if shown is None:  # all frames are brought to the size and turn of the first, as `media.read` does
                shown, turn = shown_size(self.stream, frame), turn_of(self._front or frame, self.stream)
                self.size, self.rotation = (shown[1], shown[0]) if turn[0] else shown, _degrees(turn)
            seconds = frame.time
            first = seconds if first is None else first
            since = (seconds or 0.0) - (first or 0.0)
            if self.times and (seconds is None or since <= self.times[-1]):
                since = self.times[-1] + step  # as there too, where timestamps are missing or go back
            self.times.append(since)
            self.end = since + max((frame.duration or 0) * tick, step)
            small = _small(*shown, self.short_side)
            near = _halved(frame, small)
            reduced = reformatter.reformat(near, *small, "bgr24", interpolation=Interpolation.AREA, threads=1)
            picture = np.ascontiguousarray(upright(reduced.to_ndarray(), turn))
            yield Seen(len(self.times) - 1, since, picture, self.size, turn, frame)

    def _frames(self) -> Iterator[VideoFrame]:
        import av

        packets = self.container.demux(self.stream)
        owed = 0  # packets that have not shown their frame
        for_each = self.header.codec in ONE_EACH
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.error.EOFError):
                break
            except (av.error.FFmpegError, OSError):
                self.cut_short = True
                break
            damaged = packet.is_corrupt
            owed += for_each and packet.size > 0
            try:
                for frame in self.decoder.decode(packet):
                    damaged |= frame.is_corrupt
                    owed -= for_each
                    if frame.width * frame.height <= self.max_pixels:
                        yield frame
            except av.error.EOFError:
                break
            except (av.error.FFmpegError, OSError):
                damaged = True
            self.damaged += damaged
        self.damaged = max(self.damaged, owed)


def _stricter(stream: Any) -> Any:
    """The decoder of a stream, or another one that notices more where this build of libavcodec has it."""
    import av

    context = stream.codec_context
    try:
        decoder: Any = av.CodecContext.create(STRICTER[context.name], "r")
    except (KeyError, av.codec.codec.UnknownCodecError):
        return context
    decoder.extradata, decoder.thread_count = context.extradata, 1
    return decoder


def _first_frame(path: str | Path, max_pixels: int) -> VideoFrame | None:
    with open_container(path, max_pixels) as container:
        found = decoded(container, container.streams.video[0])
        return next((frame for frame in found if not isinstance(frame, Exception)), None)


def _header(container: Any, stream: Any) -> Header:
    context = stream.codec_context
    pictures = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    whole = container.duration / 1e6 if container.duration else 0.0
    if not pictures and len(container.streams) == 1:
        pictures = whole
    depth = context.format.components[0].bits if context.format else 0
    audio = container.streams.audio
    heard = audio[0].codec_context if audio else None
    return Header(
        container=container.format.name,
        codec=context.name,
        pixel_format=context.pix_fmt or "unknown",
        bit_depth=depth,
        rate=rate_of(stream),
        frames=stream.frames,
        seconds=max(pictures, whole),
        video_seconds=pictures,
        colour=f"{_named(_COLOURS, context.colorspace)}/{_named(_COLOURS, context.color_trc)}"
        f"/{_named(_RANGES, context.color_range)}",
        audio=f"{heard.name} {heard.sample_rate} Hz {heard.layout.name}" if heard else "",
    )


# ITU-T H.273, tables 2 to 4, the values met in practice.
_COLOURS = {1: "bt709", 2: "unknown", 5: "bt470bg", 6: "bt601", 9: "bt2020", 13: "srgb", 16: "pq", 18: "hlg"}
_RANGES = {0: "unknown", 1: "limited", 2: "full"}


def _named(names: dict[int, str], value: Any) -> str:
    return names.get(int(value), str(int(value)))


def _degrees(turn: Turn) -> int:
    """Clockwise quarter turns in degrees; a mirror image counts as the turn that it comes with."""
    swapped, mirrored, upside_down = turn
    if swapped:
        return 90 if mirrored else 270
    return 180 if mirrored and upside_down else 0


def _small(width: int, height: int, short_side: int) -> tuple[int, int]:
    """The size with this short side, never larger than the picture and at most eight times as long as wide."""
    scale = min(1.0, short_side / min(width, height))
    longest = 8 * short_side
    return max(1, min(round(width * scale), longest)), max(1, min(round(height * scale), longest))


def _halved(frame: VideoFrame, small: tuple[int, int]) -> VideoFrame:
    """The frame, halved as often as it stays as large as `small`; as it is where that is less than twice.

    OpenCV halves a plane in a fifth of the time that libswscale takes to average it over any area.
    """
    import av
    import cv2

    if frame.format.name not in ("yuv420p", "yuvj420p"):
        return frame
    times, width, height = 0, frame.width, frame.height
    # Planes of chroma have half of each side and must come out even, too.
    while width % 4 == height % 4 == 0 and width >= 2 * small[0] and height >= 2 * small[1]:
        times, width, height = times + 1, width // 2, height // 2
    if times < 2:
        return frame
    near = av.VideoFrame(width, height, frame.format.name)
    near.colorspace, near.color_range = frame.colorspace, frame.color_range
    for of, to in zip(frame.planes, near.planes, strict=True):
        samples = _samples(of)
        for _ in range(times):
            half = samples.shape[1] // 2, samples.shape[0] // 2
            samples = cv2.resize(samples, half, interpolation=cv2.INTER_AREA)
        _samples(to)[:] = samples
    return near


def _samples(plane: Any) -> np.ndarray:
    """uint8 (h, w) of a plane of 8 bits, in its own memory."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


_FULL_RANGE = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def _luma(frame: VideoFrame) -> np.ndarray:
    """uint8 (H, W) in full range, straight from the decoder's memory where that holds a plane of 8 bit luma."""
    name = frame.format.name
    if not name.startswith(("yuv4", "yuvj4", "yuva4", "nv")) or frame.format.components[0].bits > 8:
        return frame.reformat(format="gray").to_ndarray()
    import cv2

    luma = _samples(frame.planes[0])
    return luma if frame.color_range == 2 or name.startswith("yuvj") else cv2.LUT(luma, _FULL_RANGE)
