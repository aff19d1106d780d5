"""Models and recipes small enough for a test to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

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
