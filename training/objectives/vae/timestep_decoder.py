"""A decoder that takes a timestep, made out of one that does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vgen.models import CausalVideoVAE


def with_timestep(vae: CausalVideoVAE) -> CausalVideoVAE:
    """The same VAE with a timestep-conditioned decoder that starts equal: at every timestep it decodes as before.

    Args:
        vae: one whose decoder takes no timestep; one that does is returned as it is.
    """
    if vae.config.timestep_conditioning:
        return vae
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    extended = CausalVideoVAE(**{**config, "timestep_conditioning": True})
    missing, unexpected = extended.load_state_dict(vae.state_dict(), strict=False)
    assert not unexpected
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in missing:
            value = extended.get_parameter(name)
            if name.endswith("timestep_scale_multiplier"):
                value.fill_(1000.0)
            elif "linear_1.weight" in name:
                value.normal_(0.0, 0.02, generator=source)
            else:  # tables, last layers and biases: shift 0, scale 0
                nn.init.zeros_(value)
    return extended.to(next(vae.parameters()).dtype).train(vae.training)


def noise_latents(vae: CausalVideoVAE, latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Noise latents as a pipeline does before such a decoder: in normalised space.

    (1 - sigma) normalised + sigma noise

    Args:
        vae: has the statistics.
        latents: [B, C, f, h, w], raw.
        noise: the same shape, standard normal.
        sigma: [B], in [0, 1].
    Returns:
        [B, C, f, h, w], raw.
    """
    mixed = torch.lerp(vae.normalize(latents), noise, sigma.to(latents).view(-1, 1, 1, 1, 1))
    return vae.denormalize(mixed)
