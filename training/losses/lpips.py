"""LPIPS (Zhang et al. 2018) on VGG-16, from weights that lie on this machine; nothing is ever fetched."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vgen.errors import CheckpointError

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
BACKBONE, HEADS = "vgg16", "lpips_vgg"
"""Names of the two files, each .safetensors; the .pth that are published are pickles, and never opened."""


class Lpips(nn.Module):
    """Learned perceptual distance of pictures.

    Args:
        folder: holds `vgg16` (torchvision's VGG-16: features.0.weight ...) and `lpips_vgg` (the linear heads of version
            0.1: lin0.model.1.weight ... lin4.model.1.weight).
    Raises:
        CheckpointError: a file is missing, is a .pth, or does not hold these weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        backbone, heads = _read(folder, BACKBONE), _read(folder, HEADS)
        self.stages = nn.ModuleList()
        place, channels = 0, 3
        for stage, widths in enumerate(_STAGES):
            layers: list[nn.Module] = [nn.MaxPool2d(2, 2)] if stage else []
            place += len(layers)
            for width in widths:
                layer = nn.Conv2d(channels, width, 3, padding=1)
                _take(layer, backbone, f"features.{place}", folder)
                layers += [layer, nn.ReLU()]
                place, channels = place + 2, width
            self.stages.append(nn.Sequential(*layers))
        self.heads = nn.ModuleList()
        for stage, widths in enumerate(_STAGES):
            head = nn.Conv2d(widths[-1], 1, 1, bias=False)
            _take(head, heads, f"lin{stage}.model.1", folder)
            self.heads.append(head)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of each pair.

        Args:
            first, second: [N, 3, H, W] in [-1, 1]; sides of at least 16 pixels.
        Returns:
            [N], 0 for equal pictures.
        """
        a, b = ((picture - self.mean) / self.std for picture in (first, second))
        total = first.new_zeros(len(first))
        for stage, head in zip(self.stages, self.heads, strict=True):
            a, b = stage(a), stage(b)
            unit_a, unit_b = (part / (part.square().sum(1, keepdim=True).sqrt() + 1e-10) for part in (a, b))
            total = total + head((unit_a - unit_b).square()).mean(dim=(1, 2, 3))
        return total

    def clips(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean over all frames: two [B, 3, F, H, W] in [-1, 1] to one number."""
        a, b = (clip.transpose(1, 2).flatten(0, 1) for clip in (first, second))
        return self(a.float(), b.float()).mean()


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    path, published = folder / f"{name}.safetensors", folder / f"{name}.pth"
    if path.is_file():
        try:
            return load_file(path)
        except Exception as error:
            raise CheckpointError(f"LPIPS: {path} cannot be read as plain tensors: {error}") from None
    if published.is_file():
        raise CheckpointError(
            f"LPIPS: {published} is a pickle, which is not opened here; only .safetensors are. Convert it once: "
            f"{conversion(published)}"
        )
    raise CheckpointError(
        f"LPIPS needs its weights in {folder}: {path.name} is not there; put it there yourself, "
        "since nothing is downloaded (see docs/metrics.md), or leave LPIPS out."
    )


def conversion(published: Path) -> str:
    """The command, for a shell, that writes the .safetensors of a .pth next to it."""
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "save_file({k: v.contiguous() for k, v in torch.load(sys.argv[1], weights_only=True).items()}, sys.argv[2])"
    )
    return shlex.join(["python", "-c", code, str(published), str(published.with_suffix(".safetensors"))])


def _take(layer: nn.Conv2d, state: dict[str, Tensor], name: str, folder: Path) -> None:
    for part, value in layer.named_parameters():
        key = f"{name}.{part}"
        if key not in state or state[key].shape != value.shape:
            found = tuple(state[key].shape) if key in state else "nothing"
            raise CheckpointError(
                f"LPIPS: in {folder} {key} is {found}, and it must be {tuple(value.shape)}: use torchvision's VGG-16 "
                "and the heads of LPIPS 0.1 for it."
            )
        value.data.copy_(state[key])
