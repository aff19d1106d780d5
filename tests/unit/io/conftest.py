"""Small clips and ways to damage files."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _clip(num_frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), 20, np.uint8)
    for index in range(num_frames):
        left = index * (width - 12) // max(num_frames - 1, 1)
        frames[index, height // 4 : height // 2, left : left + 12] = (230, 40, 30)
        frames[index, -6:, :, 2] = 200
    return frames


@pytest.fixture
def make_clip() -> Callable[..., np.ndarray]:
    """A red block that moves to the right over a blue floor: uint8 [F, H, W, 3]."""
    return _clip


@pytest.fixture
def clip() -> np.ndarray:
    """`make_clip` at its defaults: 9 x 32 x 48."""
    return _clip()


@pytest.fixture
def encode_raw() -> Callable[..., Path]:
    """Encode frames with PyAV directly, with whatever oddities a test needs."""
    import av

    def encode(
        path: Path,
        frames: np.ndarray,
        *,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        pts: list[int] | None = None,
        time_base: Fraction = Fraction(1, 8),
        context: dict[str, Any] | None = None,
        options: dict[str, str] | None = None,
    ) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=8, options={"crf": "4", **(options or {})})
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
            stream.codec_context.thread_count = 1
            stream.codec_context.time_base = time_base
            for name, value in (context or {}).items():
                setattr(stream.codec_context, name, value)
            for index, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = (pts[index] if pts else index), time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return encode


@pytest.fixture
def nothing_left(tmp_path: Path) -> Callable[..., None]:
    """Checks that a folder holds exactly these names: no `.part`, no half file."""

    def check(*names: str, folder: Path = tmp_path) -> None:
        assert sorted(p.name for p in folder.iterdir()) == sorted(names)

    return check
