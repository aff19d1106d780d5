"""What must hold for every causal VAE, whatever its weights and its clip."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vgen.models import CausalVideoVAE

_BLOCK, _BLOCK_095 = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"
CONFIGS = {
    "strided convolutions": {
        "block_out_channels": (8, 8, 16),
        "down_block_types": (_BLOCK,) * 3,
        "decoder_block_out_channels": (8, 8, 16),
        "layers_per_block": (1,) * 4,
        "decoder_layers_per_block": (1,) * 4,
        "spatio_temporal_scaling": (True, True, False),
        "decoder_spatio_temporal_scaling": (True, True, False),
        "decoder_inject_noise": (False,) * 4,
        "patch_size": 2,
    },
    "strides 8 x 8 x 4": {
        "block_out_channels": (16, 32, 32),
        "down_block_types": (_BLOCK_095,) * 2,
        "decoder_block_out_channels": (16, 32),
        "layers_per_block": (1,) * 3,
        "decoder_layers_per_block": (1,) * 3,
        "spatio_temporal_scaling": (True,) * 2,
        "decoder_spatio_temporal_scaling": (True,) * 2,
        "decoder_inject_noise": (False,) * 3,
        "downsample_type": ("spatiotemporal", "temporal"),
        "decoder_upsample_type": ("spatiotemporal", "temporal"),
        "patch_size": 4,
        "decoder_causal": True,
    },
    "spatial first": {
        "block_out_channels": (16, 32, 64),
        "down_block_types": (_BLOCK_095,) * 2,
        "decoder_block_out_channels": (16, 32),
        "layers_per_block": (1,) * 3,
        "decoder_layers_per_block": (1,) * 3,
        "spatio_temporal_scaling": (True,) * 2,
        "decoder_spatio_temporal_scaling": (True,) * 2,
        "decoder_inject_noise": (False,) * 3,
        "downsample_type": ("spatial", "temporal"),
        "decoder_upsample_type": ("spatial", "temporal"),
        "upsample_residual": (True, True),
        "upsample_factor": (2, 2),
        "patch_size": 4,
        "decoder_causal": True,
    },
}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@cache
def _vae(name: str) -> CausalVideoVAE:
    torch.manual_seed(0)
    return CausalVideoVAE(latent_channels=4, **CONFIGS[name]).eval()


@cache
def _clip(name: str, seed: int, groups: int, batch: int = 1) -> torch.Tensor:
    stride = _vae(name).strides
    size = (batch, 3, 1 + groups * stride.temporal, 2 * stride.height, stride.width)
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


clips = st.builds(
    lambda name, seed, groups: (name, seed, groups),
    st.sampled_from(list(CONFIGS)),
    st.integers(0, 3),
    st.integers(1, 3),
)
few = settings(max_examples=12, deadline=None)


@few
@given(clips)
@torch.no_grad()
def test_the_first_latent_of_a_clip_is_that_of_its_first_frame(clip):
    name, seed, groups = clip
    video = _clip(name, seed, groups)
    whole = _vae(name).encode(video).latent_dist.parameters
    alone = _vae(name).encode(video[:, :, :1]).latent_dist.parameters
    assert whole.std() > 1e-3
    torch.testing.assert_close(whole[:, :, :1], alone, **TOLERANCE)


@few
@given(clips, st.data())
@torch.no_grad()
def test_a_later_frame_never_changes_an_earlier_latent(clip, data):
    """And the latent that the frame belongs to does change."""
    name, seed, groups = clip
    vae, video = _vae(name), _clip(name, seed, groups)
    changed = data.draw(st.integers(0, video.shape[2] - 1), label="first changed frame")
    other = video.clone()
    other[:, :, changed:] = -other[:, :, changed:]
    first = -(-changed // vae.strides.temporal)  # frame 0 alone, then groups of `temporal`
    before, after = (vae.encode(clip).latent_dist.parameters for clip in (video, other))
    torch.testing.assert_close(after[:, :, :first], before[:, :, :first], **TOLERANCE)
    assert (after[:, :, first] - before[:, :, first]).abs().max() > 1e-4


@few
@given(clips)
@torch.no_grad()
def test_a_batch_is_its_samples(clip):
    name, seed, groups = clip
    vae, video = _vae(name), _clip(name, seed, groups, batch=3)
    together = vae(video).sample
    torch.testing.assert_close(together, torch.cat([vae(one).sample for one in video.split(1)]), **TOLERANCE)
    vae.enable_slicing()
    sliced = vae(video).sample
    vae.disable_slicing()
    torch.testing.assert_close(sliced, together, **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].get("decoder_causal")])
@pytest.mark.parametrize("latent_frames", [1, 3])
@torch.no_grad()
def test_a_causal_decoder_never_looks_ahead(name, latent_frames):
    vae = _vae(name)
    latents = torch.randn((1, 4, latent_frames, 2, 2), generator=torch.Generator().manual_seed(0))
    longer = torch.cat([latents, torch.randn((1, 4, 1, 2, 2), generator=torch.Generator().manual_seed(1))], dim=2)
    decoded = vae.decode(latents).sample
    assert decoded.shape[2] == 1 + (latent_frames - 1) * vae.strides.temporal
    torch.testing.assert_close(vae.decode(longer).sample[:, :, : decoded.shape[2]], decoded, **TOLERANCE)


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_sizes_come_back_and_follow_the_strides(name):
    vae = _vae(name)
    video = _clip(name, 0, 2)
    latents = vae.encode(video).latent_dist.mode()
    expected = [(video.shape[2] - 1) // vae.strides.temporal + 1]
    expected += [video.shape[3] // vae.strides.height, video.shape[4] // vae.strides.width]
    assert list(latents.shape[2:]) == expected
    assert vae.decode(latents).sample.shape == video.shape


def test_the_embedded_shape_has_strides_4_8_8():
    assert _vae("strides 8 x 8 x 4").strides == (4, 8, 8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 4.0))
def test_normalising_and_back(seed, factor):
    vae = _vae("strides 8 x 8 x 4").double()
    try:
        generator = torch.Generator().manual_seed(seed)
        vae.latents_mean.copy_(torch.randn(4, generator=generator))
        vae.latents_std.copy_(torch.rand(4, generator=generator) + 0.2)
        vae.register_to_config(scaling_factor=factor)
        latents = torch.randn((2, 4, 2, 3, 3), generator=generator, dtype=torch.float64)
        normal = vae.normalize(latents)
        torch.testing.assert_close(vae.denormalize(normal), latents, atol=1e-12, rtol=1e-12)
        expected = (latents[0, 1, 0, 2, 2] - vae.latents_mean[1]) * factor / vae.latents_std[1]
        torch.testing.assert_close(normal[0, 1, 0, 2, 2], expected)
    finally:
        vae.register_to_config(scaling_factor=1.0)
        vae.float()
        vae.latents_mean.zero_()
        vae.latents_std.fill_(1.0)
