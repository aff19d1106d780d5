"""What a picture looks like after a video encoder: given frames then resemble the frames a model was trained on."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray


def as_compressed(frames: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    """Each frame as H.264 gives it back when it is coded alone.

    Args:
        frames: [F, H, W, 3], even sides.
        crf: constant rate factor, 1 (hardly any loss) to 51.
    Returns:
        [F, H, W, 3].
    """
    return np.stack([_roundtrip(np.ascontiguousarray(frame), crf) for frame in frames])


def _roundtrip(frame: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    with io.BytesIO() as file:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = frame.shape[0], frame.shape[1], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")))
            container.mux(stream.encode())
        file.seek(0)
        with av.open(file, "r") as opened:
            return np.asarray(next(opened.decode(video=0)).to_ndarray(format="rgb24"), np.uint8)
