"""What a video file says about itself, without decoding it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vgen.io.media.codec.colours import describe_colours
from vgen.io.media.codec.containers import FOLDER, GIF, Container, identify, local_file
from vgen.io.media.codec.decode import has_alpha
from vgen.io.media.codec.demux import open_video
from vgen.io.media.comment import load_comment


class VideoInfo(NamedTuple):
    """Facts from a video's header.

    Attributes:
        container: "mp4", "webm", "avi", "gif", "webp", "png" or "png folder".
        codec: name of the codec.
        height: rows as stored, before rotation.
        width: columns as stored.
        num_frames: as the file declares it; None if it declares none.
        frame_rate: frames per second, the mean where it varies; None if not stated.
        metadata: the request kept in the file, or None.
        colours: how its colours are read.
        has_alpha: whether it has an alpha channel.
        has_sound: whether it has a sound track.
    """

    container: str
    codec: str
    height: int
    width: int
    num_frames: int | None
    frame_rate: float | None
    metadata: dict[str, Any] | None
    colours: str = "RGB"
    has_alpha: bool = False
    has_sound: bool = False


def probe(path: str | Path) -> VideoInfo:
    """Read the header of a local video file or folder of PNG frames.

    Raises:
        MediaError: missing, not a video, empty, truncated; names file and cause.
    """
    found = local_file(path, "video")
    container = identify(found)
    if container is FOLDER:
        return _probe_folder(found)
    if container.pillow is not None:
        return _probe_animation(found, container)
    with open_video(found, container) as (opened, stream):
        context = stream.codec_context
        rate = stream.average_rate or stream.guessed_rate
        layout = context.format
        full = context.color_range == 2 or (layout is not None and layout.name.startswith("yuvj"))
        colours = describe_colours(context.colorspace, 2 if full else 1, context.height, context.width)
        comment = {key.lower(): value for key, value in opened.metadata.items()}.get("comment")
        return VideoInfo(
            container.name,
            context.name,
            context.height,
            context.width,
            stream.frames or None,
            float(rate) if rate else None,
            load_comment(comment),
            "RGB" if layout is not None and layout.is_rgb else colours,
            has_alpha(stream),
            bool(opened.streams.audio),
        )


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """The JSON object that `write_video` kept in a clip; None if the clip holds none.

    Raises:
        MediaError: as `probe`.
    """
    return probe(path).metadata


def _probe_folder(path: Path) -> VideoInfo:
    from vgen.io.media.frame_folder import folder_metadata, frame_files, read_facts
    from vgen.io.media.images import open_picture

    files, facts = frame_files(path), read_facts(path)
    with open_picture(files[0]) as opened:
        width, height = opened.size
    rate = facts.get("frame_rate")
    return VideoInfo(
        FOLDER.name,
        "png",
        height,
        width,
        len(files),
        float(rate) if isinstance(rate, (int, float)) else None,
        folder_metadata(path),
    )


def _probe_animation(path: Path, container: Container) -> VideoInfo:
    from vgen.io.media.animation import measure_animation
    from vgen.io.media.images import comment_of, open_picture

    assert container.pillow is not None
    metadata = None
    if container is GIF:
        with open_picture(path, ("GIF",), load=False) as picture:
            metadata = load_comment(comment_of(picture))
    frames, height, width = measure_animation(path, container.pillow)
    return VideoInfo(container.name, container.name, height, width, frames, None, metadata)
