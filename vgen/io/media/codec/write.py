"""Writing a clip: to a `.part` next to its name, closed, synced, read again and counted, then put in place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgen.errors import MediaError, OutputError, ShapeError
from vgen.io.files import part_of
from vgen.io.media.codec.demux import import_av
from vgen.io.media.codec.read import measure_video
from vgen.io.media.comment import dump_comment
from vgen.io.media.enlarged import Enlarged
from vgen.io.media.output import OutputKind, check_output, check_output_size

if TYPE_CHECKING:
    import numpy as np

    from vgen.io.media.enlarged import Frames
    from vgen.io.media.take import FramesOnDisk

BT709 = 1
LIMITED_RANGE = 1
ONE_THREAD_PIXELS = 1 << 22
"""Clips of fewer pixels in all are encoded by one thread: starting more costs more than it saves."""

_ENCODERS: dict[OutputKind, tuple[str, str, dict[str, str], dict[str, str]]] = {
    OutputKind.MP4: ("mp4", "libx264", {"crf": "12", "preset": "medium"}, {"movflags": "+faststart"}),
    OutputKind.WEBM: ("webm", "libvpx-vp9", {"crf": "12", "b": "0", "deadline": "good", "cpu-used": "4"}, {}),
}
"""Muxer, encoder, options of the encoder (near-transparent quality), options of the muxer."""


def write_video(
    path: str | Path,
    frames: np.ndarray | FramesOnDisk,
    frame_rate: float,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    scale: int = 1,
) -> Path:
    """Write a clip as mp4 (H.264), webm (VP9), gif, or a folder of PNG, by the ending of `path`.

    Nothing appears under `path` before the finished file was read again and its frames were counted; after a
    failure nothing is left behind.

    Args:
        path: see `output.output_kind`.
        frames: uint8 [F, H, W, 3], RGB, in memory or on disk; mp4 needs even sides.
        frame_rate: frames per second.
        metadata: JSON object kept as the file's comment (metadata.json in a folder); see `read_metadata`.
        overwrite: replace what is there.
        scale: each pixel is written as a square of `scale` pixels; undone by reading where `metadata` is an output's
            and says it, see `vgen.io.media.enlarged`.
    Returns:
        `path` as a Path.
    Raises:
        ShapeError: `frames` is not uint8 [F, H, W, 3] or has no frame.
        OutputError: the output cannot be written there, or not in this size.
        RequestError: `metadata` is not JSON.
    """
    _check_frames(frames)
    stored: Frames = frames if scale == 1 else Enlarged(frames, scale)
    kind = check_output(path, overwrite)
    check_output_size(path, stored.shape[1], stored.shape[2], frame_rate)
    comment = None if metadata is None else dump_comment(metadata)
    target = Path(path)
    with part_of(target, overwrite=overwrite, folder=kind is OutputKind.FOLDER, bytes_needed=stored.nbytes) as part:
        if kind is OutputKind.FOLDER:
            from vgen.io.media.frame_folder import write_folder

            write_folder(part, stored, frame_rate, metadata)
        elif kind is OutputKind.GIF:
            from vgen.io.media.animation import write_gif

            with part.open("wb") as stream:
                write_gif(stream, stored, frame_rate, comment)
        else:
            _encode(part, kind, stored, frame_rate, comment)
        _check_written(target, part, stored)
    return target


def _check_frames(frames: Frames) -> None:
    shape, dtype = getattr(frames, "shape", None), getattr(frames, "dtype", None)
    if shape is None or len(shape) != 4 or shape[3] != 3 or str(dtype) != "uint8":
        raise ShapeError(f"frames must be uint8 [frames, height, width, 3]; got {dtype} {shape}.")
    if 0 in shape:
        raise ShapeError(f"frames has shape {tuple(shape)}: a clip needs at least one frame and one pixel.")


def _encode(part: Path, kind: OutputKind, frames: Frames, frame_rate: float, comment: str | None) -> None:
    """Encode to `part`; 4:2:0, BT.709, limited range, and tagged so."""
    import numpy as np

    av = import_av()
    from av.video.reformatter import Interpolation

    muxer, encoder, encoder_options, muxer_options = _ENCODERS[kind]
    try:
        with av.open(f"file:{part.absolute()}", "w", format=muxer, options=muxer_options) as container:
            if comment is not None:
                container.metadata["comment"] = comment
            stream = container.add_stream(encoder, rate=Fraction(frame_rate).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            stream.options = encoder_options
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
            if frames.size // 3 < ONE_THREAD_PIXELS:
                context.thread_count = 1
            for index, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                    format="yuv420p",
                    dst_colorspace=BT709,
                    dst_color_range=LIMITED_RANGE,
                    interpolation=Interpolation.AREA,
                )
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except av.error.FFmpegError as error:
        if error.errno and error.errno < 256:
            raise OSError(error.errno, os.strerror(error.errno)) from None
        raise OutputError(f"{part} could not be encoded by {encoder}: {error.strerror or error}.") from None


def _check_written(target: Path, part: Path, frames: Frames) -> None:
    try:
        found = (*measure_video(part), 3)
    except MediaError as error:
        raise OutputError(f"{target} was not written well ({error}); nothing was put in its place.") from None
    if found != frames.shape:
        raise OutputError(f"{target} was not written well: {found} came back of {frames.shape}; nothing was kept.")
