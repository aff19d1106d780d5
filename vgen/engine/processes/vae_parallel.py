"""A VAE's pictures on several processes: each codes a stripe, and hands its edge to its neighbours where they need it.

Before each convolution a process sends the outermost row (or column) of its stripe to the neighbour there and takes
theirs; at the picture's own border there are zeros, as in one process. So the result is that of one process, no part
is computed twice, and each process holds about its share of the activations. Works with streaming in time, and within
tiles, which are cut into stripes one by one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vgen.engine.device import free_bytes
from vgen.engine.processes.groups import Group, shares
from vgen.errors import RequestError
from vgen.models import CausalVideoVAE
from vgen.models.vae.blocks import ResnetBlock
from vgen.models.vae.causal_conv import FramePaddedConv3d
from vgen.models.vae.decoder import Decoder
from vgen.models.vae.encoder import Encoder


class Stripes(Group):
    """Cuts the pictures of an encoder or a decoder into stripes, until `detach`.

    Pictures with fewer latents along their longer side than there are processes are coded whole by each of them.
    There are no gradients: where they are wanted, a RequestError says so.

    Args:
        coder: of a CausalVideoVAE.
        scale: rows and columns at `conv_in` for each latent.
        group: see Group.
    """

    def __init__(self, coder: Encoder | Decoder, scale: tuple[int, int], group: Any = None) -> None:
        super().__init__("Coding pictures in stripes", group)
        self.scale = scale
        self._axis: int | None = None
        self._stripes: list[int] = []
        self._convs = [conv for conv in coder.modules() if isinstance(conv, FramePaddedConv3d)]
        self._paddings = [tuple(conv.padding) for conv in self._convs]
        self._resnets = [block for block in coder.modules() if isinstance(block, ResnetBlock)]
        self._handles: list[RemovableHandle] = []
        first, last = coder.conv_in.conv, coder.conv_out.conv
        for conv in self._convs:
            if conv.kernel_size[1] > 3 or conv.kernel_size[2] > 3:
                raise RequestError(f"A kernel of {conv.kernel_size} reaches further than a stripe's neighbouring row.")
            if conv is first:
                self._handles.append(conv.register_forward_pre_hook(self._enter))
            elif max(conv.padding):
                self._handles.append(conv.register_forward_pre_hook(self._widen))
        self._handles.append(last.register_forward_hook(self._leave))

    def detach(self) -> None:
        """Leave the model as it was."""
        self._cut_along(None)
        for handle in self._handles:
            handle.remove()

    def _cut_along(self, axis: int | None) -> None:
        """Cut along an axis of [B, C, F, H, W]: there the convolutions no longer pad, what comes in is padded."""
        if axis == self._axis:
            return
        self._axis = axis
        for conv, padding in zip(self._convs, self._paddings, strict=True):
            conv.padding = tuple(0 if axis == at + 2 else width for at, width in enumerate(padding))
        for block in self._resnets:
            block.stripes = None if axis is None else self

    def _enter(self, conv: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of the whole that comes in, this process's stripe with its neighbours' edges."""
        whole: Tensor = args[0]
        latents = [side // scale for side, scale in zip(whole.shape[3:], self.scale, strict=True)]
        axis = 3 if latents[0] >= latents[1] else 4
        if latents[axis - 3] < self.size:
            self._cut_along(None)
            return args
        if torch.is_grad_enabled():
            raise RequestError("A VAE spread over processes gives no gradients: call it in torch.no_grad().")
        self._cut_along(axis)
        scale = self.scale[axis - 3]
        self._stripes = [count * scale for count in shares(latents[axis - 3], self.size)]
        start = sum(self._stripes[: self.rank])
        stop = start + self._stripes[self.rank]
        inside = slice(max(start - 1, 0), min(stop + 1, whole.shape[axis]))
        parts = [whole.narrow(axis, inside.start, inside.stop - inside.start)]
        nothing = torch.zeros_like(whole.narrow(axis, 0, 1))
        if start == 0:
            parts.insert(0, nothing)
        if stop == whole.shape[axis]:
            parts.append(nothing)
        return (torch.cat(parts, dim=axis), *args[1:])

    def _widen(self, conv: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A stripe with its neighbours' edges, zeros where there is no neighbour."""
        stripe: Tensor = args[0]
        if self._axis is None:
            return args
        first, last = stripe.narrow(self._axis, 0, 1), stripe.narrow(self._axis, -1, 1)
        before, after = torch.zeros_like(first).contiguous(), torch.zeros_like(last).contiguous()
        swaps: list[dist.P2POp] = []
        if stripe.numel():
            for neighbour, own, theirs in ((self.rank - 1, first, before), (self.rank + 1, last, after)):
                if 0 <= neighbour < self.size:
                    peer = self.peer(neighbour)
                    swaps.append(dist.P2POp(dist.isend, own.contiguous(), peer, self.group))
                    swaps.append(dist.P2POp(dist.irecv, theirs, peer, self.group))
        for swap in dist.batch_isend_irecv(swaps) if swaps else ():
            swap.wait()
        return (torch.cat([before, stripe, after], dim=self._axis), *args[1:])

    def _leave(self, conv: nn.Module, args: tuple[Any, ...], stripe: Tensor) -> Tensor:
        """The whole, of the stripes of all processes."""
        if self._axis is None:
            return stripe
        return self.join(stripe, self._counts(stripe), self._axis)

    def _counts(self, stripe: Tensor) -> list[int]:
        """Positions of all stripes at the resolution of this one."""
        assert self._axis is not None
        mine, entered = stripe.shape[self._axis], self._stripes[self.rank]
        assert all(count * mine % entered == 0 for count in self._stripes)
        return [count * mine // entered for count in self._stripes]

    def whole(self, stripe: Tensor) -> tuple[int, int]:
        """Rows and columns of the picture that `stripe` [..., H, W] belongs to."""
        assert self._axis is not None
        size = list(stripe.shape[-2:])
        size[self._axis - 3] = sum(self._counts(stripe))
        return size[0], size[1]

    def mine(self, picture: Tensor) -> Tensor:
        """This process's stripe of a picture [..., H, W]."""
        assert self._axis is not None
        axis = self._axis - 5
        entered = sum(self._stripes)
        start, count = (
            value * picture.shape[axis] // entered
            for value in (sum(self._stripes[: self.rank]), self._stripes[self.rank])
        )
        return picture.narrow(axis, start, count)


class VaeParallel:
    """Codes pictures by stripes on several processes, until `detach`; all make the same calls.

    Args:
        vae: whose `encode` and `decode` are spread.
        group: of torch.distributed; None: all processes.
    Raises:
        RequestError: torch.distributed has not been set up.
    """

    def __init__(self, vae: CausalVideoVAE, group: Any = None) -> None:
        side = vae.config.patch_size
        self.decoder = Stripes(vae.decoder, (1, 1), group)
        self.encoder = Stripes(vae.encoder, (vae.strides.height // side, vae.strides.width // side), group)
        self.vae, self.group = vae, group
        vae.spread = self

    def room(self) -> int:
        """Bytes that coding may take: four fifths of what is free on every process's device, shared where it is one.

        The same on all processes, so that they choose the same way of coding.
        """
        device = self.vae.device
        sharing = dist.get_world_size(self.group) if device.type == "cpu" else 1
        free = torch.tensor([free_bytes(device) * 4 // 5 // sharing], device=device)
        dist.all_reduce(free, dist.ReduceOp.MIN, group=self.group)
        return int(free)

    def detach(self) -> None:
        """Leave the VAE as it was."""
        self.encoder.detach()
        self.decoder.detach()
        self.vae.spread = None
