"""Opening a video file safely and strictly: the one place that asks PyAV for an input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import MediaError
from vgen.io.media.codec.colours import check_tone
from vgen.io.media.codec.containers import Container
from vgen.io.media.limits import MAX_PICTURE_PIXELS

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

STRICT = "crccheck+bitstream+buffer+explode"
"""`err_detect`: a decoder left to itself paints over damage and says nothing."""

LENIENT = "crccheck+bitstream+buffer"
"""`err_detect` where it is harmless that something is missing; frames of H.264 that do not decode are still marked."""


def import_av() -> Any:
    """PyAV, with libav's own printing off: what went wrong is said by our errors."""
    import av
    import av.logging

    av.logging.set_level(None)
    return av


@contextmanager
def open_video(path: Path, container: Container) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened file and its video stream, set to fail on damage.

    Raises:
        MediaError: no video inside, HDR, an absurd picture size, or damage that decoding meets inside the `with`.
    """
    av = import_av()
    options = {"protocol_whitelist": "file", "err_detect": STRICT}
    try:
        with av.open(f"file:{path.absolute()}", format=container.demuxer, options=options) as opened:
            stream = _video_stream(path, opened)
            stream.codec_context.options = {"err_detect": STRICT}
            if stream.codec_context.width * stream.codec_context.height <= 512 * 512:
                stream.codec_context.thread_count = 1
            yield opened, stream
    except av.error.EOFError:
        raise MediaError(f"{path} has no frames: it ends before the first one.") from None
    except av.error.FFmpegError as error:
        raise MediaError(f"{path} is damaged or not a {container.name} file: {error.strerror or error}.") from None
    except UnicodeEncodeError:
        raise MediaError(f"{path!r} has a name that is not valid text; rename the file.") from None


def _video_stream(path: Path, opened: InputContainer) -> VideoStream:
    streams = [s for s in opened.streams.video if not s.disposition & type(s.disposition).attached_pic]
    if not streams:
        kinds = sorted({s.type for s in opened.streams})
        held = f"it holds only {' and '.join(kinds)}" if kinds else "it holds no stream at all"
        raise MediaError(f"{path} has no video: {held}.")
    stream = streams[0]
    context = stream.codec_context
    if context is None or context.width < 1 or context.height < 1:
        raise MediaError(f"{path} has a video of an unknown size or codec; it cannot be decoded.")
    check_picture_size(path, context.width, context.height)
    check_tone(path, context.color_trc, context.color_primaries, context.colorspace)
    return stream


def check_picture_size(path: Path, width: int, height: int) -> None:
    """Refuse pictures that would take more memory than any use of them here is worth.

    Raises:
        MediaError: names the size and the limit.
    """
    if width * height > MAX_PICTURE_PIXELS:
        raise MediaError(
            f"{path} is {width} x {height} pixels; at most {MAX_PICTURE_PIXELS:,} pixels (8192 x 8192) are read. "
            "Make it smaller first."
        )
