"""3-D convolution that never looks ahead in time (or, where asked, looks both ways), padded by repeated frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgen import ops
from vgen.models.vae.streaming import FrameStream, begins


class FramePaddedConv3d(nn.Conv3d):
    """Conv3d whose temporal border is made of repeated edge frames; zeros beyond the spatial border.

    A causal one repeats the first frame kernel - 1 times in front, the other repeats the first and the last frame
    (kernel - 1) // 2 times each. The frames are concatenated explicitly: convolution libraries are several times
    faster that way than with temporal padding of their own.

    A single frame is a special case: every tap of the kernel sees the same frame, so the kernel summed over time
    is applied in two dimensions, a third of the work for a kernel of three.
    """

    padding: tuple[int, ...]
    bias: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        stride: tuple[int, int, int],
        causal: bool,
    ) -> None:
        padding = (0, kernel_size[1] // 2, kernel_size[2] // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        taps = kernel_size[0] - 1
        self.frames_before, self.frames_after = (taps, 0) if causal else (taps // 2, taps // 2)

    def forward(
        self,
        hidden_states: Tensor,
        last_of: tuple[int, int] | None = None,
        stream: FrameStream | None = None,
        padded: bool = False,
    ) -> Tensor:
        """Convolve.

        Args:
            hidden_states: [B, C, F, H, W].
            last_of: only for a single frame: output channels are laid out as (D, a, r) and `last_of` = (a, r) asks
                for only those with the last index along a.
            stream: remembers the frames that the next piece of the clip looks back at; None: this is the whole clip.
            padded: the edge frames are repeated already.
        Returns:
            [B, D, F', H', W'], F' = (F - 1) // temporal stride + 1; in a stream, the frames that are known by now.
        """
        if stream is not None:
            return self._piece(hidden_states, stream)
        if hidden_states.shape[2] == 1 and not padded:
            return self._one_frame(hidden_states, last_of)
        if not padded:
            hidden_states = ops.repeat_edges(hidden_states, self.frames_before, self.frames_after)
        return ops.conv3d(hidden_states, self.weight, self.bias, self.stride, self.padding)

    def _piece(self, hidden_states: Tensor, stream: FrameStream) -> Tensor:
        kernel, step = self.kernel_size[0], self.stride[0]
        frames = stream.join(self, hidden_states)
        if self.frames_before and begins(stream, self, hidden_states):
            frames = torch.cat([frames[:, :, :1].expand(-1, -1, self.frames_before, -1, -1), frames], dim=2)
        if stream.last and self.frames_after:
            frames = torch.cat([frames, frames[:, :, -1:].expand(-1, -1, self.frames_after, -1, -1)], dim=2)
        count = max(0, (frames.shape[2] - kernel) // step + 1)
        if not stream.last:
            stream.keep(self, frames[:, :, count * step :])
        if count == 0:
            rows, columns = (
                (frames.shape[axis + 2] + 2 * self.padding[axis] - self.kernel_size[axis]) // self.stride[axis] + 1
                for axis in (1, 2)
            )
            return frames.new_empty(frames.shape[0], self.out_channels, 0, rows, columns)
        return ops.conv3d(frames, self.weight, self.bias, self.stride, self.padding)

    def _one_frame(self, hidden_states: Tensor, last_of: tuple[int, int] | None) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if last_of is not None:
            weight, bias = (value.unflatten(0, (-1, *last_of))[:, -1].flatten(0, 1) for value in (weight, bias))
        kernel = weight.sum(dim=2) if self.kernel_size[0] > 1 else weight[:, :, 0]
        frame = F.conv2d(hidden_states[:, :, 0], kernel, bias, self.stride[1:], self.padding[1:])
        return frame.unsqueeze(2)


class CausalConv3d(nn.Module):
    """A convolution over [B, C, F, H, W] that keeps the number of frames (at stride 1).

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: odd; one number for all axes.
        stride: (frames, rows, columns).
        causal: output frame f depends on input frames <= f only. Otherwise it looks both ways.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: tuple[int, int, int] = (1, 1, 1),
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.conv = FramePaddedConv3d(in_channels, out_channels, (kernel_size,) * 3, stride, causal)

    def forward(
        self, hidden_states: Tensor, last_of: tuple[int, int] | None = None, stream: FrameStream | None = None
    ) -> Tensor:
        """[B, C, F, H, W] -> [B, D, F', H', W']; see FramePaddedConv3d."""
        return self.conv(hidden_states, last_of, stream)

    def after_norm(
        self,
        hidden_states: Tensor,
        eps: float,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        stream: FrameStream | None = None,
    ) -> Tensor:
        """Pixel norm, modulation, SiLU and this convolution: [B, C, F, H, W] -> [B, D, F', H', W'].

        Args:
            hidden_states: [B, C, F, H, W].
            eps: of the norm.
            shift, scale: [B, C, 1, 1, 1], or both None.
            stream: see FramePaddedConv3d.
        """
        if stream is not None and not torch.is_grad_enabled():
            return self._piece_after_norm(hidden_states, eps, shift, scale, stream)
        whole = stream is None and hidden_states.shape[2] > 1
        edges = (self.conv.frames_before, self.conv.frames_after) if whole else (0, 0)
        activated = ops.pixel_norm_silu(hidden_states, shift, scale, *edges, eps)
        return self.conv(activated, stream=stream, padded=whole)

    def _piece_after_norm(
        self, hidden_states: Tensor, eps: float, shift: Tensor | None, scale: Tensor | None, stream: FrameStream
    ) -> Tensor:
        """As `after_norm`: the norm leaves room for the frames kept from the last piece, so that nothing is joined."""
        conv = self.conv
        kept = stream.pop(conv)
        before = 0 if kept is None else kept.shape[2]
        after = conv.frames_after if stream.last else 0
        if hidden_states.shape[2]:
            if begins(stream, conv, hidden_states):
                before = conv.frames_before
            activated = ops.pixel_norm_silu(hidden_states, shift, scale, before, after, eps)
            if kept is not None:
                activated[:, :, :before] = kept
        elif kept is not None:
            activated = torch.cat([kept, kept[:, :, -1:].expand(-1, -1, after, -1, -1)], dim=2)
        else:
            activated = hidden_states
        count = max(0, activated.shape[2] - conv.kernel_size[0] + 1)
        if not stream.last and activated.shape[2] > count:
            stream.keep(conv, activated[:, :, count:])
        if count == 0:
            size = hidden_states.shape
            return hidden_states.new_empty(size[0], conv.out_channels, 0, *size[3:])
        return conv(activated, padded=True)
