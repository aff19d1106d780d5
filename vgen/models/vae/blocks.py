"""The blocks of the causal VAE: residual block, changes of resolution, and the stages made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from torch import Tensor, nn

from vgen import ops
from vgen.errors import RequestError
from vgen.models.layers import ChannelLayerNorm, ModuleListOf, PixelNorm, TimestepEmbedder
from vgen.models.vae.causal_conv import CausalConv3d
from vgen.models.vae.streaming import FrameStream, add_beside, begins, take

Generators = torch.Generator | list[torch.Generator] | None
"""Where injected noise comes from: one generator for the batch, one per sample, or the global one."""
STRIDES = {"spatiotemporal": (2, 2, 2), "temporal": (2, 1, 1), "spatial": (1, 2, 2)}
"""(frames, rows, columns) that a change of resolution joins or splits, by its name in the config."""


def resolution_stride(field: str, kind: str) -> tuple[int, int, int]:
    """The stride that `kind` names; refuses an unknown one, naming the config `field`."""
    if kind not in STRIDES:
        raise RequestError(f"{field}: {kind!r} is not known: use one of {', '.join(STRIDES)}.")
    return STRIDES[kind]


def check_lengths(config: Any, needed: int, owner: str, *fields: str) -> None:
    """Refuse config tuples that have fewer than the `needed` entries that `owner` asks for.

    Surplus entries are let through: public configs leave defaults of another length next to what they set.
    """
    for field in fields:
        if (count := len(getattr(config, field))) < needed:
            raise RequestError(f"{field} has {count} entries, but {owner} asks for {needed}; give {needed}.")


def space_to_depth(hidden_states: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[B, C, F * a, H * b, W * c] -> [B, C * a * b * c, F, H, W]."""
    a, b, c = stride
    return rearrange(hidden_states, "n d (f a) (h b) (w c) -> n (d a b c) f h w", a=a, b=b, c=c)


def modulation(embedding: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    """Shift and scale vectors: `embedding` [B, K * C] plus `table` [K, C] -> K tensors [B, C, 1, 1, 1]."""
    values = embedding.unflatten(1, table.shape) + table
    return tuple(part[..., None, None, None] for part in values.unbind(dim=1))


class PictureStripes(Protocol):
    """Pictures cut into stripes over several processes, see vgen.engine.processes.vae_parallel."""

    def whole(self, stripe: Tensor) -> tuple[int, int]:
        """Rows and columns of the picture that `stripe` [..., H, W] belongs to."""

    def mine(self, picture: Tensor) -> Tensor:
        """This process's stripe of a picture [..., H, W]."""


class ResnetBlock(nn.Module):
    """norm, SiLU, convolution, twice, added to the input.

    Args:
        in_channels, out_channels: where they differ, a 1x1x1 shortcut is added.
        eps: of the shortcut's norm.
        causal: see CausalConv3d.
        inject_noise: add noise after each convolution, one field of H x W for all channels and frames, scaled
            per channel.
        timestep_conditioning: scale and shift after each norm by the time embedding.
    """

    stripes: PictureStripes | None = None
    """Where each of several processes has a part of the pictures."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        eps: float,
        causal: bool,
        inject_noise: bool = False,
        timestep_conditioning: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = PixelNorm()
        self.conv1 = CausalConv3d(in_channels, out_channels, causal=causal)
        self.norm2 = PixelNorm()
        self.conv2 = CausalConv3d(out_channels, out_channels, causal=causal)
        self.norm3 = self.conv_shortcut = None
        if in_channels != out_channels:
            self.norm3 = ChannelLayerNorm(in_channels, eps=eps)
            self.conv_shortcut = CausalConv3d(in_channels, out_channels, kernel_size=1, causal=causal)
        self.per_channel_scale1 = self.per_channel_scale2 = None
        if inject_noise:
            self.per_channel_scale1 = nn.Parameter(torch.zeros(in_channels, 1, 1))
            self.per_channel_scale2 = nn.Parameter(torch.zeros(in_channels, 1, 1))
        self.scale_shift_table = None
        if timestep_conditioning:
            self.scale_shift_table = nn.Parameter(torch.randn(4, in_channels) / in_channels**0.5)

    def draw_noise(self, hidden_states: Tensor, generator: Generators) -> Tensor | None:
        """The two noise fields of one call, [B or 1, 2, H, W], or None where no noise is injected.

        One generator (or none) gives all samples the same fields; a list gives each sample fields of its own.
        Drawn outside `forward`, so that recomputation under gradient checkpointing sees the same noise.
        """
        if self.per_channel_scale1 is None:
            return None
        size = tuple(hidden_states.shape[-2:]) if self.stripes is None else self.stripes.whole(hidden_states)
        sources = generator if isinstance(generator, list) else [generator]
        fields = [
            torch.stack([randn_tensor(size, source, hidden_states.device, hidden_states.dtype) for _ in range(2)])
            for source in sources
        ]
        return torch.stack(fields) if self.stripes is None else self.stripes.mine(torch.stack(fields))

    def forward(
        self,
        inputs: Tensor,
        embedding: Tensor | None = None,
        noise: Tensor | None = None,
        stream: FrameStream | None = None,
    ) -> Tensor:
        """[B, C, F, H, W] -> [B, D, F, H, W].

        Args:
            inputs: hidden states.
            embedding: [B, 4 * C], only with timestep conditioning.
            noise: from `draw_noise`.
            stream: see streaming.FrameStream.
        """
        shift_1 = scale_1 = shift_2 = scale_2 = None
        if self.scale_shift_table is not None:
            assert embedding is not None
            shift_1, scale_1, shift_2, scale_2 = modulation(embedding, self.scale_shift_table)
        hidden_states = self.conv1.after_norm(inputs, self.norm1.eps, shift_1, scale_1, stream)
        if self.per_channel_scale1 is not None:
            assert noise is not None
            hidden_states = hidden_states + (noise[:, :1] * self.per_channel_scale1)[:, :, None]
        hidden_states = self.conv2.after_norm(hidden_states, self.norm2.eps, shift_2, scale_2, stream)
        if self.per_channel_scale2 is not None:
            assert noise is not None
            hidden_states = hidden_states + (noise[:, 1:] * self.per_channel_scale2)[:, :, None]
        if self.conv_shortcut is not None and self.norm3 is not None:
            inputs = self.conv_shortcut(self.norm3(inputs), stream=stream)
        return add_beside(stream, self, hidden_states, inputs)


class Downsampler(nn.Module):
    """Space to depth with a learned part (convolution) and a fixed one (mean over groups of channels).

    The first frame stands alone in time: it is repeated until it fills a group, so 1 + k * stride frames
    become 1 + k.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int, int], causal: bool) -> None:
        super().__init__()
        self.stride = stride
        volume = stride[0] * stride[1] * stride[2]
        if out_channels % volume or (in_channels * volume) % out_channels:
            raise RequestError(
                f"block_out_channels: {in_channels} -> {out_channels} cannot be downsampled by {stride}: the channels "
                f"after it must divide by {volume} and divide {in_channels * volume}; use {in_channels * volume}."
            )
        self.group_size = in_channels * volume // out_channels
        self.conv = CausalConv3d(in_channels, out_channels // volume, causal=causal)

    def forward(self, hidden_states: Tensor, stream: FrameStream | None = None) -> Tensor:
        """[B, C, 1 + (F - 1) * a, H * b, W * c] -> [B, D, F, H, W]."""
        missing = self.stride[0] - 1
        one_frame = hidden_states.shape[2] == 1 and stream is None
        convolved = self.conv(hidden_states) if one_frame else None
        if missing and begins(stream, self, hidden_states):
            hidden_states = torch.cat([hidden_states[:, :, :1]] * missing + [hidden_states], dim=2)
        if convolved is None:
            convolved = self.conv(hidden_states, stream=stream)
        elif missing:
            convolved = convolved.expand(-1, -1, self.stride[0], -1, -1)
        if stream is not None:  # only whole groups of frames go on
            convolved = stream.join(self, convolved, "convolved")
            count = convolved.shape[2] // self.stride[0] * self.stride[0]
            convolved = take(stream, self, convolved, count, "convolved")
            hidden_states = take(stream, self, hidden_states, count, "input")
        groups = space_to_depth(hidden_states, self.stride).unflatten(1, (-1, self.group_size))
        return space_to_depth(convolved, self.stride) + groups.mean(dim=2)


class Upsampler(nn.Module):
    """Convolution, then depth to space; the frames that the first latent has too many of are dropped.

    Args:
        in_channels: channels in.
        stride: (frames, rows, columns).
        factor: channels are divided by it.
        residual: add the input, rearranged the same way and repeated over channels.
        causal: see CausalConv3d.
    """

    def __init__(
        self, in_channels: int, stride: tuple[int, int, int], factor: int, residual: bool, causal: bool
    ) -> None:
        super().__init__()
        self.stride, self.residual = stride, residual
        volume = stride[0] * stride[1] * stride[2]
        self.repeats = volume // factor
        if residual and (in_channels % volume or volume % factor):
            raise RequestError(
                f"upsample_residual: {in_channels} channels and upsample_factor={factor} do not fit an upsampling by "
                f"{stride}: the channels must divide by {volume} and the factor must divide {volume}."
            )
        self.conv = CausalConv3d(in_channels, in_channels * volume // factor, causal=causal)

    def forward(self, hidden_states: Tensor, stream: FrameStream | None = None) -> Tensor:
        """[B, C, F, H, W] -> [B, C // factor, 1 + (F - 1) * a, H * b, W * c]."""
        surplus = self.stride[0] - 1
        if hidden_states.shape[2] == 1 and surplus and stream is None:  # only the last frame of the group is kept
            upsampled = self.conv(hidden_states, (self.stride[0], self.stride[1] * self.stride[2]))
            upsampled = ops.depth_to_space(upsampled, (1, *self.stride[1:]))
        else:
            convolved = self.conv(hidden_states, stream=stream)
            surplus = surplus if begins(stream, self, convolved) else 0
            upsampled = ops.depth_to_space(convolved, self.stride, surplus)
            count = convolved.shape[2]
            del convolved
            if self.residual:
                hidden_states = take(stream, self, hidden_states, count)
        if not self.residual:
            return upsampled
        carried = ops.depth_to_space(hidden_states, self.stride, surplus)
        if torch.is_grad_enabled():
            return upsampled + carried.repeat(1, self.repeats, 1, 1, 1)
        upsampled.unflatten(1, (self.repeats, -1)).add_(carried.unsqueeze(1))
        return upsampled


class Stage(nn.Module):
    """What all stages share: a run of residual blocks, recomputed in the backward pass if asked."""

    _gradient_checkpointing_func: Callable[..., Tensor]  # diffusers sets it where it turns checkpointing on

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def run_resnets(
        self,
        resnets: Iterable[ResnetBlock],
        hidden_states: Tensor,
        embedding: Tensor | None,
        generator: Generators,
        stream: FrameStream | None = None,
    ) -> Tensor:
        """[B, C, F, H, W] through `resnets` in order."""
        for resnet in resnets:
            noise = _noise_for(resnet, hidden_states, generator, stream)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(resnet, hidden_states, embedding, noise)
            else:
                hidden_states = resnet(hidden_states, embedding, noise, stream)
        return hidden_states


def _noise_for(
    resnet: ResnetBlock, hidden_states: Tensor, generator: Generators, stream: FrameStream | None
) -> Tensor | None:
    """The noise of a residual block: the same for all pieces of a clip."""
    if stream is None:
        return resnet.draw_noise(hidden_states, generator)
    return stream.once(resnet, lambda: resnet.draw_noise(hidden_states, generator), "noise")


class DownBlock(Stage):
    """Residual blocks, then a reduction of resolution.

    Args:
        in_channels, out_channels: before and after.
        num_layers: residual blocks before the reduction.
        eps: of shortcut norms.
        causal: see CausalConv3d.
        downsample: None, "conv" (strided convolution, 2x2x2), or a name of STRIDES (space to depth).
        widen: with None or "conv", a residual block after the reduction changes the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        eps: float,
        causal: bool,
        downsample: str | None,
        widen: bool,
    ) -> None:
        super().__init__()
        self.resnets = ModuleListOf(ResnetBlock(in_channels, in_channels, eps, causal) for _ in range(num_layers))
        self.downsamplers: ModuleListOf[CausalConv3d | Downsampler] | None = None
        self.conv_out: ResnetBlock | None = None
        if downsample == "conv":
            reduce = CausalConv3d(in_channels, in_channels, stride=(2, 2, 2), causal=causal)
            self.downsamplers = ModuleListOf([reduce])
        elif downsample is not None:
            stride = resolution_stride("downsample_type", downsample)
            self.downsamplers = ModuleListOf([Downsampler(in_channels, out_channels, stride, causal)])
        if widen and in_channels != out_channels:
            self.conv_out = ResnetBlock(in_channels, out_channels, eps, causal)

    def forward(self, hidden_states: Tensor, stream: FrameStream | None = None) -> Tensor:
        """[B, C, F, H, W] -> [B, D, F', H', W']."""
        hidden_states = self.run_resnets(self.resnets, hidden_states, None, None, stream)
        for reduce in self.downsamplers or ():
            hidden_states = reduce(hidden_states, stream=stream)
        return hidden_states if self.conv_out is None else self.conv_out(hidden_states, stream=stream)


class MidBlock(Stage):
    """Residual blocks at one resolution."""

    def __init__(
        self,
        channels: int,
        num_layers: int,
        eps: float,
        causal: bool,
        inject_noise: bool = False,
        timestep_conditioning: bool = False,
    ) -> None:
        super().__init__()
        self.time_embedder = TimestepEmbedder(4 * channels) if timestep_conditioning else None
        self.resnets = ModuleListOf(
            ResnetBlock(channels, channels, eps, causal, inject_noise, timestep_conditioning) for _ in range(num_layers)
        )

    def forward(
        self,
        hidden_states: Tensor,
        timesteps: Tensor | None = None,
        generator: Generators = None,
        stream: FrameStream | None = None,
    ) -> Tensor:
        """[B, C, F, H, W] -> same; `timesteps` [B] where the block is conditioned on them."""
        embedding = self.time_embedder(timesteps, hidden_states.dtype) if self.time_embedder is not None else None
        return self.run_resnets(self.resnets, hidden_states, embedding, generator, stream)


class UpBlock(Stage):
    """A change of channels where needed, an increase of resolution where asked, then residual blocks.

    Args:
        in_channels, out_channels: before, and of the residual blocks.
        num_layers: residual blocks.
        eps: of shortcut norms.
        causal: see CausalConv3d.
        inject_noise, timestep_conditioning: see ResnetBlock.
        stride: of the upsampling, None for none.
        residual, factor: see Upsampler.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        eps: float,
        causal: bool,
        inject_noise: bool,
        timestep_conditioning: bool,
        stride: tuple[int, int, int] | None,
        residual: bool,
        factor: int,
    ) -> None:
        super().__init__()
        self.time_embedder = TimestepEmbedder(4 * out_channels) if timestep_conditioning else None
        self.conv_in = ResnetBlock(in_channels, out_channels, eps, causal) if in_channels != out_channels else None
        self.upsamplers = None
        if stride is not None:
            upsampler = Upsampler(out_channels * factor, stride, factor, residual, causal)
            self.upsamplers = ModuleListOf([upsampler])
        self.resnets = ModuleListOf(
            ResnetBlock(out_channels, out_channels, eps, causal, inject_noise, timestep_conditioning)
            for _ in range(num_layers)
        )

    def forward(
        self,
        hidden_states: Tensor,
        timesteps: Tensor | None = None,
        generator: Generators = None,
        stream: FrameStream | None = None,
    ) -> Tensor:
        """[B, C, F, H, W] -> [B, D, F', H', W']; `timesteps` [B] where the block is conditioned on them."""
        if self.conv_in is not None:
            hidden_states = self.conv_in(hidden_states, stream=stream)
        embedding = self.time_embedder(timesteps, hidden_states.dtype) if self.time_embedder is not None else None
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, stream)
        return self.run_resnets(self.resnets, hidden_states, embedding, generator, stream)
