"""Videos, pictures and masks brought to the size of a clip, with sentences about what was done to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vgen.errors import RequestError, counted
from vgen.request.fields import MAX_FRAME_RATE
from vgen.request.request import ResolvedRequest

if TYPE_CHECKING:
    import numpy as np

    from vgen.io.media.video import VideoClip

_FITTED = {"cover": "scaled and cut", "contain": "scaled and padded", "stretch": "stretched"}


def read_fitted(video: str, request: ResolvedRequest, max_frames: int | None = None) -> VideoClip:
    """Read a video, each frame brought to the clip's size as it is read."""
    from vgen.io.media.video import read_video

    return read_video(video, max_frames, fit=lambda pixels: fit_pixels(pixels, request))


def fit_pixels(pixels: np.ndarray, request: ResolvedRequest) -> np.ndarray:
    """uint8 [H, W, 3] in the clip's size; for outpaint made smaller until it lies within it."""
    import numpy as np
    from PIL import Image

    from vgen.io.media.images import fit_image, shrink_into

    picture = Image.fromarray(pixels)
    if request.task == "outpaint":
        return np.asarray(shrink_into(picture, request.height, request.width))
    return np.asarray(fit_image(picture, request.height, request.width, request.fit))


def read_mask(name: str, clip: VideoClip, request: ResolvedRequest) -> tuple[np.ndarray, list[str]]:
    """How white a mask is, fitted as its video was, uint8 [F, H, W]; and notes about it.

    Args:
        name: of a picture or a video.
        clip: the video, with the frames that are used.
        request: resolved.
    Raises:
        MediaError: it cannot be read, or nothing of it is white.
        RequestError: another size than the video's, or fewer frames.
    """
    import numpy as np

    from vgen.io.media.enlarged import shrink
    from vgen.io.media.masks import read_mask_file

    count, (height, width) = len(clip.frames), clip.size
    mask = read_mask_file(name, max_frames=count)
    if clip.scale > 1 and mask.white.shape[1:] == (height * clip.scale, width * clip.scale):  # drawn over the file
        mask = mask._replace(white=np.stack([shrink(white, clip.scale) for white in mask.white]))
    if mask.white.shape[1:] != (height, width):
        raise RequestError(
            f"mask={name!r} is {mask.white.shape[2]} x {mask.white.shape[1]} and the video {width} x {height}: make "
            "it the same size."
        )
    if len(mask.white) < count and not mask.is_picture:
        raise RequestError(
            f"mask={name!r} has {counted(len(mask.white), 'frame')} and {count} of the video are used: give one mask "
            f"per frame, one picture for all, or --num-frames {len(mask.white)} or fewer."
        )
    notes = [f"{name}: {note}" for note in mask.notes]
    if not mask.is_picture and mask.num_in_file != clip.num_in_file:
        notes.append(
            f"{name}: it has {counted(mask.num_in_file, 'frame')} and the video {clip.num_in_file:,}; the first "
            f"{count} of both are used, one by one."
        )
    notes.append(f"{name}: {mask.white.mean() / 2.55:.0f} % of the pixels are repainted.")
    fitted = [fit_pixels(np.repeat(white[..., None], 3, axis=-1), request)[..., 0] for white in mask.white]
    return np.stack(fitted).repeat(count if mask.is_picture else 1, axis=0), notes


def place(frames: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Put frames in the middle of a canvas.

    Args:
        frames: uint8 [F, H, W, 3], not larger than the canvas.
        height, width: of the canvas.
    Returns:
        uint8 [F, height, width, 3], and the mask float [height, width] with 1 where they lie.
    Raises:
        RequestError: they fill the canvas.
    """
    import numpy as np

    inner = frames.shape[1:3]
    if inner == (height, width):
        raise RequestError(
            f"width={width}, height={height} is filled by the video: nothing lies around it; use a larger width or "
            "height, or another shape."
        )
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas = np.zeros((len(frames), height, width, 3), np.uint8)
    known = np.zeros((height, width), np.float32)
    canvas[:, top : top + inner[0], left : left + inner[1]] = frames
    known[top : top + inner[0], left : left + inner[1]] = 1
    return canvas, known


def note_of_fit(name: str, before: Sequence[int], request: ResolvedRequest) -> list[str]:
    """One sentence if something of another size, (width, height), was fitted to the clip's."""
    if tuple(before) == (request.width, request.height):
        return []
    size = f"{request.width} x {request.height}"
    return [f"{name}: {before[0]} x {before[1]} was {_FITTED[request.fit]} to {size} (--fit {request.fit})."]


def note_of_rate(video: str, has: float, wanted: float) -> list[str]:
    """One sentence if a video runs at another rate than the clip."""
    if abs(has - wanted) <= 0.01 * has:
        return []
    keeps = f" --frame-rate {has:.5g} keeps its speed." if has <= MAX_FRAME_RATE else ""
    factor = wanted / has
    speed = f"{factor:.3g} times as fast" if factor > 1 else f"{1 / factor:.3g} times slower"
    return [
        f"{video}: it runs at {has:.5g} frames per second and the clip at {wanted:.5g}: its frames are taken one by "
        f"one, so that it moves {speed}.{keeps}"
    ]
