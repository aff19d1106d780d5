"""From decoded video frames to pixels: deinterlaced, upright, square pixels, 8-bit RGB over one background."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import MediaError, counted
from vgen.io.media.codec.colours import UNSTATED, assumed_matrix, check_tone
from vgen.io.media.codec.demux import import_av

if TYPE_CHECKING:
    import numpy as np
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MATRIX_NAMES = {"BT.709": "ITU709", "BT.601": "ITU601"}


class FramePixels:
    """Turns the decoded frames of one stream into pixels.

    Args:
        path: file, for messages.
        stream: that they come from.
        background: RGB behind transparent places.
    Attributes:
        notes: what was changed, one sentence each.
        times: seconds at which each frame is shown; None: the file does not say.
    """

    def __init__(self, path: Path, stream: VideoStream, background: tuple[int, int, int]) -> None:
        self.path, self.background = path, background
        self.time_base = stream.time_base
        aspect = stream.codec_context.sample_aspect_ratio
        self.pixel_aspect = aspect if aspect and aspect != 1 else None
        self.notes: list[str] = []
        self.times: list[float | None] = []
        self._turn: tuple[int, int, int, int] | None = None

    def convert(self, frames: Iterable[VideoFrame]) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] of each frame, all of one size.

        Raises:
            MediaError: HDR, wide gamut, or another size in the middle.
        """
        size: tuple[int, ...] | None = None
        for frame in self._deinterlaced(self._seen(frames)):
            picture = self._rgb(frame)
            if size is not None and picture.shape != size:
                raise MediaError(
                    f"{self.path} changes its frame size after {counted(len(self.times), 'frame')}; that is not read."
                )
            size = picture.shape
            self.times.append(float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else None)
            yield picture

    def _seen(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Each frame as decoded, looked at."""
        for place, frame in enumerate(frames):
            if not place:
                check_tone(self.path, frame.color_trc, frame.color_primaries, frame.colorspace)
                self._turn = _turn(frame)
                self.notes += self._first_notes(frame)
            if not frame.time_base and self.time_base:  # the last ones, which the decoder had held back
                frame.time_base = self.time_base
            yield frame

    def _first_notes(self, frame: VideoFrame) -> Iterator[str]:
        bits = max((component.bits for component in frame.format.components), default=8)
        if bits > 8:
            yield f"{bits}-bit colour was reduced to 8 bits."
        if self._turn is not None:
            yield "The frames were turned upright as the file asks."
        if self.pixel_aspect:
            yield f"Pixels {self.pixel_aspect} as wide as high were made square."
        if _is_transparent(frame):
            shown = {(255, 255, 255): "white", (0, 0, 0): "black"}.get(self.background, f"RGB {self.background}")
            yield f"Transparent places show {shown}."

    def _deinterlaced(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Both fields of an interlaced frame made one picture; frames that are not interlaced stay as they are."""
        av, graph = import_av(), None
        for frame in frames:
            if graph is None and frame.interlaced_frame:
                graph = _deinterlacing_graph(frame)
                self.notes.append("The frames are interlaced; they were deinterlaced (bwdif).")
            if graph is None:
                yield frame
                continue
            graph.vpush(frame)
            yield from _ready(av, graph)
        if graph is not None:
            graph.vpush(None)
            yield from _ready(av, graph)

    def _rgb(self, frame: VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3]."""
        import numpy as np

        width = frame.width if not self.pixel_aspect else max(1, round(frame.width * self.pixel_aspect))
        matrix = None
        if int(frame.colorspace) == UNSTATED and not frame.format.is_rgb:
            matrix = _MATRIX_NAMES[assumed_matrix(frame.height, frame.width)]
        layout = "rgba" if _is_transparent(frame) else "rgb24"
        picture = frame.reformat(width, frame.height, layout, src_colorspace=matrix).to_ndarray()
        if layout == "rgba":
            opacity = picture[..., 3:].astype(np.uint16)
            shown = picture[..., :3] * opacity + np.asarray(self.background, np.uint16) * (255 - opacity)
            picture = ((shown + 127) // 255).astype(np.uint8)
        if self._turn is None:
            return picture
        a, b, c, d = self._turn
        if a == 0:
            picture, flip_columns, flip_rows = picture.transpose(1, 0, 2), c < 0, b < 0
        else:
            flip_columns, flip_rows = a < 0, d < 0
        return np.ascontiguousarray(picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def _is_transparent(frame: VideoFrame) -> bool:
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def _deinterlacing_graph(frame: VideoFrame) -> Any:
    import av.filter

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    deinterlace = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    source.link_to(deinterlace)
    deinterlace.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _ready(av: Any, graph: Any) -> Iterator[VideoFrame]:
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield frame


def _turn(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """Signs (a, b, c, d) of the display matrix x' = a x + c y, y' = b x + d y; None if there is nothing to do."""
    import numpy as np

    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(data, dtype="<i4")
    a, b, c, d = (int(np.sign(round(matrix[i] / 65536))) for i in (0, 1, 3, 4))
    if (a, b, c, d) == (1, 0, 0, 1) or a * d - b * c == 0 or (a and b):
        return None
    return a, b, c, d
