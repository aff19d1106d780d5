"""Models and recipes small enough for a test to train."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vgen.models import CausalVideoVAE

TINY_VAE: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": [8, 8, 8],
    "layers_per_block": [1, 1, 1],
    "down_block_types": ["LTXVideo095DownBlock3D", "LTXVideo095DownBlock3D"],
    "downsample_type": ["spatiotemporal", "temporal"],
    "spatio_temporal_scaling": [True, True],
    "decoder_block_out_channels": [8, 8],
    "decoder_layers_per_block": [1, 1, 1],
    "decoder_spatio_temporal_scaling": [True, True],
    "decoder_upsample_type": ["spatiotemporal", "temporal"],
    "decoder_inject_noise": [False, False, False],
    "upsample_residual": [True, True],
    "upsample_factor": [1, 1],
    "decoder_causal": True,
}


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
