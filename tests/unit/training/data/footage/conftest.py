"""Clips of which each has one thing the matter with it, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vgen.io.media.video import write_video


def _scene(num_frames: int, seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A coloured block that moves over a pattern of its own."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(60, 200, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    frames = np.repeat(ground[None], num_frames, axis=0)
    for index in range(num_frames):
        left = 2 + (index * 3) % (width - 18)
        frames[index, 10:26, left : left + 16] = rng.integers(0, 255, 3) if index == 0 else frames[0, 10, 2]
    return frames


@pytest.fixture(scope="session")
def scene() -> Callable[..., np.ndarray]:
    """Makes a moving scene, uint8 [F, 48, 64, 3]; another seed, another scene."""
    return _scene


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that happens to footage."""
    root = tmp_path_factory.mktemp("footage")
    (root / "more").mkdir()
    first, second = _scene(20, 1), _scene(16, 2)
    write_video(root / "two_shots.mp4", np.concatenate([first, second]), 8.0)
    write_video(root / "more" / "again.mp4", np.kron(first, np.ones((1, 2, 2, 1), np.uint8)), 8.0)
    write_video(root / "static.mp4", np.repeat(_scene(1, 3), 20, axis=0), 8.0)
    write_video(root / "black.mp4", np.full((20, 48, 64, 3), 4, np.uint8), 8.0)
    write_video(root / "short.mp4", _scene(5, 4), 8.0)
    barred = np.zeros((20, 96, 64, 3), np.uint8)
    barred[:, 24:72] = _scene(20, 5)
    write_video(root / "bars.mp4", barred, 8.0)
    faded = np.concatenate([np.zeros((4, 48, 64, 3), np.uint8), _scene(20, 6)])
    write_video(root / "faded.mp4", faded, 8.0)
    (root / "broken.mp4").write_bytes((root / "bars.mp4").read_bytes()[:900])
    (root / "sound.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt " + bytes(20))
    (root / "notes.txt").write_text("not footage")
    return root
