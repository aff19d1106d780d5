"""Models and recipes small enough for a test to train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vgen.models import CausalVideoVAE

TINY_VAE: dict[str, Any] = json.loads((Path(__file__).parents[2] / "tiny_models.json").read_text())["vae"]


@pytest.fixture(scope="session")
def tiny_vae_config() -> dict[str, Any]:
    """Arguments of a CausalVideoVAE with strides 4 x 8 x 8."""
    return dict(TINY_VAE)


@pytest.fixture
def tiny_vae() -> CausalVideoVAE:
    """A random VAE with statistics that are not trivial."""
    vae = CausalVideoVAE(**TINY_VAE)
    vae.init_weights(torch.Generator().manual_seed(1))
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 4))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, 4))
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def degraded() -> Callable[[NDArray[np.uint8], str], NDArray[np.uint8]]:
    """Frames [F, H, W, 3] as a way leaves them: "clean", with "noise", or after a "blur" with less noise."""

    def degrade(frames: NDArray[np.uint8], way: str) -> NDArray[np.uint8]:
        if way == "clean":
            return frames
        sigma = {"noise": 15.0, "blur": 11.0}[way]
        if way == "blur":
            padded = np.pad(frames.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
            rows = 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
            both = 0.25 * rows[:, :, :-2] + 0.5 * rows[:, :, 1:-1] + 0.25 * rows[:, :, 2:]
            frames = both.astype(np.uint8)
        noise = np.random.default_rng(0).standard_normal(frames.shape).astype(np.float32)
        return np.clip(frames + sigma * noise + 0.5, 0, 255).astype(np.uint8)

    return degrade
