"""Where tones are mapped: on normalised latents, after noise that is mixed in there, before noise mixed in later."""

from types import SimpleNamespace

import pytest
import torch

from vgen.diffusion.latent_statistics import tone_map
from vgen.pipelines.call.conventions import LTX, NATIVE, ORIGINAL
from vgen.pipelines.call.settings import GenerationSettings
from vgen.pipelines.coding.coder import Coder

LATENTS = torch.randn(1, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0)) * 2


class _Vae:
    """Remembers what it decodes; its statistics are mean 1 and deviation 3."""

    dtype = torch.float32
    use_slicing = False

    def __init__(self, timestep_conditioning):
        self.config = SimpleNamespace(timestep_conditioning=timestep_conditioning)

    def denormalize(self, latents):
        return latents * 3 + 1

    def decode_in_pieces(self, latents, timestep, generator):
        self.decoded = latents
        yield latents.new_zeros(1, 3, 9, 16, 16)


@pytest.mark.parametrize("convention", [NATIVE, LTX, ORIGINAL], ids=lambda convention: convention.name)
@pytest.mark.parametrize("conditioned", [False, True])
def test_place(convention, conditioned):
    settings = GenerationSettings.fill(
        {"prompt": "", "height": 16, "width": 16, "num_frames": 9, "frame_rate": 8, "decode_noise_scale": 0.25,
         "tone_map_compression_ratio": 0.6, "generator": torch.Generator().manual_seed(1)},
        convention.defaults,
    )  # fmt: skip
    vae = _Vae(conditioned)
    Coder(vae, settings, convention, torch.float32).decode(LATENTS)
    noise = torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(1))
    if not conditioned:
        expected = tone_map(LATENTS, 0.6) * 3 + 1
    elif convention is LTX:
        expected = 0.75 * (tone_map(LATENTS, 0.6) * 3 + 1) + 0.25 * noise
    else:
        expected = tone_map(0.75 * LATENTS + 0.25 * noise, 0.6) * 3 + 1
    torch.testing.assert_close(vae.decoded, expected, rtol=0, atol=1e-5)
