"""Tiny models for the unit tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vgen.models import CausalVideoVAE, VideoDiT

DIT: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "num_layers": 2,
    "caption_channels": 10,
}
VAE: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 2,
    "decoder_block_out_channels": (16, 32),
    "layers_per_block": (1,) * 3,
    "decoder_layers_per_block": (1,) * 3,
    "spatio_temporal_scaling": (True,) * 2,
    "decoder_spatio_temporal_scaling": (True,) * 2,
    "decoder_inject_noise": (False,) * 3,
    "downsample_type": ("spatiotemporal", "temporal"),
    "decoder_upsample_type": ("spatiotemporal", "temporal"),
}
NOISY_VAE: dict[str, Any] = {
    **VAE,
    "upsample_residual": (True, True),
    "upsample_factor": (2, 2),
    "decoder_inject_noise": (False, True, True),
    "timestep_conditioning": True,
}


@pytest.fixture
def dit_config() -> dict[str, Any]:
    """Of a two-layer transformer."""
    return dict(DIT)


@pytest.fixture
def vae_config() -> dict[str, Any]:
    """Of a VAE of strides 8 x 8 x 4."""
    return dict(VAE)


@pytest.fixture
def dit() -> VideoDiT:
    """A two-layer transformer of random weights."""
    torch.manual_seed(0)
    return VideoDiT(**DIT).eval()


@pytest.fixture
def dit_inputs() -> dict[str, torch.Tensor]:
    """Two samples of six tokens, one timestep per token, ragged text."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn((2, 6, 4), generator=generator),
        "encoder_hidden_states": torch.randn((2, 5, 10), generator=generator),
        "timestep": torch.rand((2, 6), generator=generator) * 1000,
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        "video_coords": torch.rand((2, 3, 6), generator=generator) * torch.tensor([4.0, 64.0, 64.0])[:, None],
    }


@pytest.fixture
def vae() -> CausalVideoVAE:
    """A VAE of random weights, strides 8 x 8 x 4."""
    torch.manual_seed(0)
    return CausalVideoVAE(**VAE).eval()


@pytest.fixture
def noisy_vae() -> CausalVideoVAE:
    """One whose decoder takes a timestep and injects noise at two depths."""
    torch.manual_seed(0)
    model = CausalVideoVAE(**NOISY_VAE).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "per_channel_scale" in name:
                parameter.fill_(0.3)
    return model
