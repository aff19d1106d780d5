"""CausalVideoVAE against diffusers' AutoencoderKLLTXVideo with the same random weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

from vgen.models import CausalVideoVAE
from vgen.models.vae.blocks import ResnetBlock


def _pair(config, fill_zeros, keep=None):
    torch.manual_seed(0)
    reference = fill_zeros(AutoencoderKLLTXVideo(**config), keep)
    ours = CausalVideoVAE(**config).eval()
    assert dict(ours.named_parameters()).keys() == dict(reference.named_parameters()).keys()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


def _video(frames: int, batch: int = 2) -> torch.Tensor:
    return torch.rand((batch, 3, frames, 64, 96), generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 9, 17])
@torch.no_grad()
def test_encode(vae_config, fill_zeros, assert_close, frames):
    ours, reference = _pair(vae_config, fill_zeros)
    video = _video(frames)
    expected = reference.encode(video).latent_dist
    actual = ours.encode(video).latent_dist
    assert_close(actual.mean, expected.mean)
    assert_close(actual.logvar, expected.logvar)
    drawn = [d.sample(torch.Generator().manual_seed(3)) for d in (actual, expected)]
    assert_close(*drawn)


@pytest.mark.parametrize("frames", [1, 2, 3])
@torch.no_grad()
def test_decode(vae_config, fill_zeros, assert_close, frames):
    ours, reference = _pair(vae_config, fill_zeros, keep="per_channel_scale")
    latents = torch.randn((2, 8, frames, 2, 3), generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([0.05, 0.4]) if vae_config["timestep_conditioning"] else None
    assert_close(ours.decode(latents, timesteps).sample, reference.decode(latents, timesteps).sample)


@pytest.mark.parametrize("causal", [(True, True), (False, False), (False, True)])
@torch.no_grad()
def test_causal_either_way(vae_config, fill_zeros, assert_close, causal):
    config = {**vae_config, "encoder_causal": causal[0], "decoder_causal": causal[1]}
    ours, reference = _pair(config, fill_zeros, keep="per_channel_scale")
    video, timesteps = _video(9), torch.tensor([0.1, 0.2])
    assert_close(ours(video, timesteps).sample, reference(video, timesteps).sample)


@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_injected_noise(vae_091_config, fill_zeros, assert_close, monkeypatch, frames):
    """Ours draws from its generator, diffusers from the global one: both get the same fields."""
    ours, reference = _pair(vae_091_config, fill_zeros)
    assert sum(block.per_channel_scale1 is not None for block in ours.modules() if isinstance(block, ResnetBlock)) == 3
    latents = torch.randn((2, 8, frames, 2, 3), generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([0.05, 0.4])
    actual = ours.decode(latents, timesteps, generator=torch.Generator().manual_seed(5)).sample

    source, plain_randn = torch.Generator().manual_seed(5), torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **kw: plain_randn(*size, **{**kw, "generator": source}))
    expected = reference.decode(latents, timesteps).sample
    assert_close(actual, expected)
    monkeypatch.undo()
    other = ours.decode(latents, timesteps, generator=torch.Generator().manual_seed(6)).sample
    assert (other - actual).abs().max() > 1e-3


@torch.no_grad()
def test_spatial_tiles(vae_config, fill_zeros, assert_close):
    ours, reference = _pair(vae_config, fill_zeros, keep="per_channel_scale")
    for vae in (ours, reference):
        vae.enable_tiling(
            tile_sample_min_height=64,
            tile_sample_min_width=96,
            tile_sample_stride_height=32,
            tile_sample_stride_width=64,
        )
    video = torch.rand((1, 3, 9, 96, 192), generator=torch.Generator().manual_seed(1)) * 2 - 1
    timesteps = torch.tensor([0.1])
    expected = reference.encode(video).latent_dist.mean
    assert_close(ours.encode(video).latent_dist.mean, expected)
    assert_close(ours.decode(expected, timesteps).sample, reference.decode(expected, timesteps).sample)


def test_released_widths_have_the_released_number_of_parameters():
    """Parameters of the published 0.9.0 and 0.9.5 VAEs, in millions, counted without memory for them."""
    with torch.device("meta"):
        first = CausalVideoVAE()
        later = CausalVideoVAE(
            block_out_channels=(128, 256, 512, 1024, 2048),
            down_block_types=("LTXVideo095DownBlock3D",) * 4,
            decoder_block_out_channels=(256, 512, 1024),
            layers_per_block=(4, 6, 6, 2, 2),
            decoder_layers_per_block=(5, 5, 5, 5),
            spatio_temporal_scaling=(True,) * 4,
            decoder_spatio_temporal_scaling=(True,) * 3,
            decoder_inject_noise=(False,) * 4,
            downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            upsample_residual=(True,) * 3,
            upsample_factor=(2,) * 3,
            timestep_conditioning=True,
        )
    millions = [round(sum(p.numel() for p in part.parameters()) / 1e6) for part in (first.encoder, first.decoder)]
    assert millions == [180, 239]
    millions = [round(sum(p.numel() for p in part.parameters()) / 1e6) for part in (later.encoder, later.decoder)]
    assert millions == [694, 553]


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_wider_networks(vae_config, fill_zeros, assert_close, causal):
    """Widths that fill vector registers, as real models have; decoder and encoder each on its own."""
    wide = {name: tuple(4 * width for width in vae_config[name]) for name in vae_config if name.endswith("out_channels")
            and isinstance(vae_config[name], tuple)}  # fmt: skip
    config = {**vae_config, **wide, "latent_channels": 32, "encoder_causal": causal, "decoder_causal": causal}
    ours, reference = _pair(config, fill_zeros, keep="per_channel_scale")
    assert_close(ours.encode(_video(9)).latent_dist.mean, reference.encode(_video(9)).latent_dist.mean)
    latents = torch.randn((2, 32, 2, 2, 3), generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([0.1, 0.2])
    assert_close(ours.decode(latents, timesteps).sample, reference.decode(latents, timesteps).sample)
