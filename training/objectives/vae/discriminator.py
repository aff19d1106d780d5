"""The reconstruction GAN: a discriminator of pairs, and the two losses that it gives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from vgen.training.precision import in_float32

_SCALE = 0.05
"""Of the discriminator's loss. Adam does not see it; it keeps the common clipping of gradients to the decoder's own."""

_MOST = 1e3


class PairDiscriminator(nn.Module):
    """Which of two clips is the original, patch by patch. Antisymmetric: to swap the clips turns the sign.

    Args:
        width: channels of the first layer; each further one has twice as many.
        levels: how often rows and columns are halved.
        seed: initialises the weights.
    """

    def __init__(self, width: int = 32, levels: int = 3, seed: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 6
        for level in range(levels):
            wider = width * 2**level
            layers.append(nn.Conv3d(channels, wider, (3, 4, 4), (1, 2, 2), padding=1))
            if level:
                layers.append(nn.GroupNorm(max(1, wider // 16), wider))
            layers.append(nn.LeakyReLU(0.2))
            channels = wider
        layers.append(nn.Conv3d(channels, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers:
                if isinstance(layer, nn.Conv3d):
                    layer.weight.normal_(0.0, layer.weight[0].numel() ** -0.5, generator=source)
                    assert layer.bias is not None
                    nn.init.zeros_(layer.bias)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits that `first` is the original.

        Args:
            first, second: [B, 3, F, H, W] in [-1, 1].
        Returns:
            [B, 1, F, h, w], one a patch.
        """
        both = torch.cat([torch.cat([first, second], dim=1), torch.cat([second, first], dim=1)])
        straight, swapped = self.layers(both).chunk(2)
        return straight - swapped


class GanLosses(NamedTuple):
    """`total` is to be added to the reconstruction loss; `logs` are detached scalars."""

    total: Tensor
    logs: dict[str, Tensor]


def gan_losses(
    discriminator: PairDiscriminator,
    original: Tensor,
    restored: Tensor,
    reconstruction: Tensor,
    last_layer: Tensor,
    weight: float,
    active: bool,
) -> GanLosses:
    """The decoder's loss (to be mistaken for the original) and the discriminator's, each with its own gradients only.

    The decoder's is scaled so that its gradient at the last layer is `weight` times that of the reconstruction.

    Args:
        discriminator: of pairs.
        original, restored: [B, 3, F, H, W] in [-1, 1].
        reconstruction: the loss to compare with.
        last_layer: the decoder's last weights.
        weight: see above.
        active: False lets the discriminator learn alone.
    """
    with in_float32(original.device):
        original, restored = original.float(), restored.float()
        told_apart = discriminator(original, restored.detach())
        own = functional.softplus(-told_apart).mean()
        logs = {"gan/discriminator": own.detach(), "gan/accuracy": (told_apart > 0).float().mean()}
        if not active:
            return GanLosses(_SCALE * own, logs)
        frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
        mistaken = functional.softplus(functional_call(discriminator, frozen, (original, restored))).mean()
    with torch.no_grad():
        wanted, given = (
            torch.autograd.grad(value, last_layer, retain_graph=True)[0].float().norm()
            for value in (reconstruction, mistaken)
        )
        factor = weight * (wanted / (given + 1e-8)).clamp(max=_MOST)
    logs |= {"gan/decoder": mistaken.detach(), "gan/factor": factor}
    return GanLosses(factor * mistaken + _SCALE * own, logs)
