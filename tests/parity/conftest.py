"""Tiny models of the public shapes, the same in vgen and in diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

TOLERANCE = 1e-5

_BLOCK, _BLOCK_095 = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"
_COMMON = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "patch_size": 4,
    "patch_size_t": 1,
    "encoder_causal": True,
    "decoder_causal": False,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1.0,
}
VAE_CONFIGS: dict[str, dict[str, Any]] = {
    "0.9.0": {
        **_COMMON,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": (_BLOCK,) * 4,
        "decoder_block_out_channels": (8, 8, 16, 16),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, True, False),
        "decoder_spatio_temporal_scaling": (True, True, True, False),
        "timestep_conditioning": False,
    },
    "0.9.1": {
        **_COMMON,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": (_BLOCK,) * 4,
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 4,
        "spatio_temporal_scaling": (True, True, True, False),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (True, True, True, False),
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2,) * 3,
        "timestep_conditioning": True,
    },
    "0.9.5": {
        **_COMMON,
        "block_out_channels": (8, 16, 32, 64, 128),
        "down_block_types": (_BLOCK_095,) * 4,
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 4,
        "spatio_temporal_scaling": (True,) * 4,
        "decoder_spatio_temporal_scaling": (True,) * 3,
        "decoder_inject_noise": (False,) * 4,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2,) * 3,
        "timestep_conditioning": True,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
}


@pytest.fixture(params=list(VAE_CONFIGS))
def vae_config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One configuration of each public generation of the VAE."""
    return VAE_CONFIGS[request.param]


@pytest.fixture
def vae_configs() -> dict[str, dict[str, Any]]:
    """All three, by version."""
    return VAE_CONFIGS


@pytest.fixture
def vae_091_config() -> dict[str, Any]:
    """The generation that injects noise."""
    return VAE_CONFIGS["0.9.1"]


@pytest.fixture
def fill_zeros():
    """Make every all-zero parameter of a model non-zero, except those whose name holds `keep`."""

    def fill(model: nn.Module, keep: str | None = None) -> nn.Module:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.any() and (keep is None or keep not in name):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
        return model.eval()

    return fill


@pytest.fixture
def assert_close():
    """Largest absolute difference within the tolerance, on outputs that are not all the same number."""

    def check(ours: torch.Tensor, reference: torch.Tensor) -> None:
        assert ours.shape == reference.shape
        assert reference.std() > 1e-3, "a constant output compares nothing"
        difference = (ours - reference).abs().max().item()
        assert difference <= TOLERANCE, f"largest difference {difference:.2e}"

    return check
