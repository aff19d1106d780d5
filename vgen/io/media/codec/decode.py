"""Decoding a video stream strictly: every frame whole and in order, or a reason why not."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import MediaError, counted
from vgen.io.media.codec.demux import LENIENT, STRICT, import_av

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_NOT_SHOWN = 2
"""Flag of an index entry that an edit list leaves out: decoded because others need it, never shown."""

_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""FFmpeg's own decoders leave the alpha of webm aside."""

_WHOLE_START = {"h264": lambda header: header & 31 == 5, "hevc": lambda header: header >> 1 & 63 in (19, 20)}
"""By codec, whether a NAL unit with this first byte starts a stream that needs nothing before it."""

_AFTER_A_CUT = {"h264": LENIENT, "hevc": STRICT}
"""`err_detect` by codec. H.264 may let go of a picture that was cut off; strict decoding calls that damage."""


class StrictFrames:
    """The decoded frames of a stream in the order in which they are shown; damage is raised, never painted over.

    A file that was cut where a decoder may begin, but pictures before the cut are still spoken of (the recovery point
    of an open GOP in H.264, a CRA picture in HEVC), is read as players read it: pictures that need what was cut off are
    left out.

    Args:
        path: file, for messages.
        opened, stream: from `demux.open_video`.
        time_limit: seconds of decoding after which it is given up; what is done with the frames does not count.
    Attributes:
        num_decoded: frames so far.
        num_cut: packets at the start that need what was cut off.
    Raises:
        MediaError: on the way, damage, or the time limit was reached.
    """

    def __init__(self, path: Path, opened: InputContainer, stream: VideoStream, time_limit: float) -> None:
        self.path, self.opened, self.stream, self.time_limit = path, opened, stream, time_limit
        self.num_decoded = self.num_cut = 0
        self._first: Packet[VideoStream] | None = None
        self._after_a_cut = False

    def __iter__(self) -> Iterator[VideoFrame]:
        alpha = _alpha_decoder(self.path, self.stream)
        packets, spent = self.opened.demux(self.stream), 0.0
        while True:
            started = time.monotonic()
            packet = next(packets, None)
            if packet is None:
                return
            if packet.is_corrupt:
                raise MediaError(f"{self.path} is damaged: the data at tick {packet.pts} is incomplete.")
            self._look_at(packet)
            frames = self.stream.codec_context.decode(packet if packet.size else None)
            if alpha is not None:
                frames = alpha.decode(packet if packet.size else None)
            spent += time.monotonic() - started
            if spent > self.time_limit:
                raise MediaError(f"{self.path} takes too long to decode; it was given up. Cut a shorter clip first.")
            for frame in frames:
                if frame.is_corrupt:
                    raise MediaError(f"{self.path} is damaged: a frame at tick {frame.pts} does not decode.")
                self.num_decoded += 1
                yield frame

    def _look_at(self, packet: Packet[VideoStream]) -> None:
        """Settle at the first packet how strict the decoder may be, and count those that need what was cut off."""
        if not packet.size:
            return
        if self._first is None:
            self._first = packet
            self._after_a_cut = _starts_after_a_cut(self.stream.codec_context, bytes(packet))
            if self._after_a_cut:
                self.stream.codec_context.options = {"err_detect": _AFTER_A_CUT[self.stream.codec_context.name]}
        elif self._after_a_cut and not packet.is_discard and packet.pts is not None and self._first.pts is not None:
            self.num_cut += packet.pts < self._first.pts

    def check_count(self, times: list[float], rate: float) -> None:
        """The whole stream was read: were all frames there that the file promises?

        Args:
            times: seconds at which the frames are shown.
            rate: frames per second, 0 if not known.
        """
        if self.num_decoded == 0:
            raise MediaError(f"{self.path} has a video stream without a single frame.")
        shown = sum(not entry.flags & _NOT_SHOWN for entry in self.stream.index_entries)
        promised = min(self.stream.frames, shown) - self.num_cut
        if self.num_decoded < promised:
            raise MediaError(
                f"{self.path} is damaged: {counted(self.num_decoded, 'frame')} can be decoded of the "
                f"{promised} that it promises."
            )
        stated = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", self.stream.metadata.get("DURATION", ""))
        if stated and rate:
            hours, minutes, seconds = map(float, stated.groups())
            duration, last = 3600 * hours + 60 * minutes + seconds, max(times)
            longest = max((after - before for before, after in pairwise(sorted(times))), default=0.0)
            if duration - last > 1.5 * max(longest, 1 / rate) + 0.01:
                raise MediaError(f"{self.path} is damaged: its last frame is at {last:.2f} s of {duration:.2f} s.")


def has_alpha(stream: VideoStream) -> bool:
    """Whether a stream has an alpha channel, as far as its header says."""
    marked = stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1"
    components = stream.codec_context.format.components if stream.codec_context.format else ()
    return marked or any(component.is_alpha for component in components)


def _alpha_decoder(path: Path, stream: VideoStream) -> Any:
    """A second decoder where the stream's own one cannot see alpha; damage is found by the stream's own."""
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or not has_alpha(stream):
        return None
    av = import_av()
    try:
        return av.CodecContext.create(name, "r")
    except av.error.FFmpegError:
        raise MediaError(
            f"{path} has an alpha channel, and this PyAV has no {name} to decode it; convert it to ProRes 4444 (mov)."
        ) from None


def _starts_after_a_cut(context: Any, packet: bytes) -> bool:
    """Whether the first picture may speak of pictures before it, which are not there."""
    whole = _WHOLE_START.get(context.name)
    return whole is not None and not any(whole(header) for header in _nal_headers(packet, context.extradata or b""))


def _nal_headers(packet: bytes, extradata: bytes) -> Iterator[int]:
    """The first byte of each NAL unit, with start codes (avi) or with lengths before them (mp4, mkv)."""
    if not extradata or extradata[0] != 1:
        for found in re.finditer(rb"\x00\x00\x01(.)", packet, re.DOTALL):
            yield found.group(1)[0]
        return
    place = 0
    while place + 4 < len(packet):
        yield packet[place + 4]
        place += 4 + int.from_bytes(packet[place : place + 4], "big")
