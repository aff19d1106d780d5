"""An image-trained VAE, rearranged for clips."""

from __future__ import annotations

import pytest
import torch

from vgen.models import CausalVideoVAE
from vgen.models.vae.inflation import inflate


def _vae(residual: bool, causal: bool) -> CausalVideoVAE:
    torch.manual_seed(0)
    vae = CausalVideoVAE(
        latent_channels=4,
        block_out_channels=(8, 8, 16),
        layers_per_block=(1, 1, 1),
        down_block_types=("LTXVideo095DownBlock3D",) * 2,
        downsample_type=("spatiotemporal", "temporal"),
        spatio_temporal_scaling=(True, True),
        decoder_block_out_channels=(8, 16),
        decoder_layers_per_block=(1, 1, 1),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_upsample_type=("spatiotemporal", "temporal"),
        decoder_inject_noise=(False,) * 3,
        upsample_residual=(residual,) * 2,
        upsample_factor=(1, 1),
        decoder_causal=causal,
        patch_size=4,
    )
    with torch.no_grad():
        for value in vae.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return vae.eval()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_images_stay_and_still_clips_become_the_image(residual: bool, causal: bool) -> None:
    vae = _vae(residual, causal)
    image = torch.rand(2, 3, 1, 32, 32) * 2 - 1
    latent = vae.encode(image).latent_dist.mode()
    picture = vae.decode(latent).sample
    still = vae.decode(latent.expand(-1, -1, 3, -1, -1)).sample
    assert (still - picture).abs().max() > 1e-2  # before: later frames are made by untrained weights

    inflate(vae)
    torch.testing.assert_close(vae.encode(image).latent_dist.mode(), latent, atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latent).sample, picture, atol=1e-5, rtol=0)
    clip = vae.encode(image.expand(-1, -1, 9, -1, -1)).latent_dist.mode()
    torch.testing.assert_close(clip, latent.expand_as(clip), atol=1e-5, rtol=0)
    still = vae.decode(latent.expand(-1, -1, 3, -1, -1)).sample
    torch.testing.assert_close(still, picture.expand_as(still), atol=1e-5, rtol=0)
