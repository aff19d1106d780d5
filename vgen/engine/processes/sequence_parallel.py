"""One clip's tokens on several processes: each works on its part, and attention is split by heads (DeepSpeed Ulysses).

Every process has the tokens of one stretch of the clip and the whole text. For self-attention the processes swap: each
gets all tokens of some heads, attends, and swaps back. Neither tokens nor heads need divide by the processes; nothing
is padded in between, so nothing can leak from padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from vgen.engine.processes.groups import Group, shares
from vgen.errors import RequestError
from vgen.models import VideoDiT
from vgen.models.transformer.attention import VideoAttentionProcessor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values, [B, N, heads, D] each, to [B, N, heads, D]."""


class SequenceParallel(Group):
    """Splits the tokens of every forward over the processes of a group, and gives all of them the whole prediction.

    All processes make the same calls with the same arguments. A forward of fewer tokens than processes is not split:
    each process then computes all of it.

    Args:
        transformer: whose forwards are split from now on, until `detach`.
        group: of torch.distributed; None: all processes.
    Raises:
        RequestError: torch.distributed has not been set up, there are fewer heads than processes, or the transformer
            is split or attends in another way already.

    Source: Jacobs et al. 2023, DeepSpeed Ulysses.
    """

    def __init__(self, transformer: VideoDiT, group: Any = None) -> None:
        super().__init__("Sequence parallelism", group)
        layers = [block.attn1 for block in transformer.transformer_blocks]
        heads = min((layer.heads for layer in layers), default=self.size)
        if heads < self.size:
            raise RequestError(
                f"{self.size} processes cannot share the {heads} heads of this transformer: each needs one; "
                f"use at most {heads} for its tokens."
            )
        for layer in layers:
            if type(layer.processor) is not VideoAttentionProcessor or layer.sequence is not None:
                raise RequestError(
                    "This transformer's attention has a processor of its own, or is split over processes already: "
                    "detach that first (set_default_attn_processor(), or detach())."
                )
            if getattr(layer.processor, "_parallel_config", None) is not None:
                raise RequestError(
                    "This transformer is split by diffusers' enable_parallelism already: use one or the other."
                )
        self._transformer, self._layers = transformer, layers
        self._signature = inspect.signature(type(transformer).forward)
        self._tokens: list[int] | None = None
        for layer in layers:
            layer.sequence = self
        self._handles: list[RemovableHandle] = [
            transformer.register_forward_pre_hook(self._enter, with_kwargs=True),
            transformer.rope.register_forward_hook(self._positions, with_kwargs=True),
            transformer.register_forward_hook(self._leave),
        ]

    def detach(self) -> None:
        """Leave the transformer as it was."""
        for layer in self._layers:
            layer.sequence = None
        for handle in self._handles:
            handle.remove()

    def _mine(self, tokens: Tensor, dim: int) -> Tensor:
        assert self._tokens is not None
        return tokens.narrow(dim, sum(self._tokens[: self.rank]), self._tokens[self.rank])

    def _enter(
        self, transformer: VideoDiT, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Cut what has one entry per token: [B, N, C] latents, [B, N] timesteps, [B, 3, N] coordinates."""
        given = self._signature.bind(transformer, *args, **kwargs).arguments
        given.pop("self")
        hidden_states, timestep, coordinates = given["hidden_states"], given["timestep"], given.get("video_coords")
        count = hidden_states.shape[1]
        self._tokens = None
        if count < self.size:
            return (), given
        if torch.is_grad_enabled():
            raise RequestError("Sequence parallelism gives no gradients: call the transformer in torch.no_grad().")
        if transformer.is_cache_enabled:
            raise RequestError(
                "A step cache decides from the tokens it sees, and each process sees others: call disable_cache(), "
                "or spread the branches of the guidance instead."
            )
        if coordinates is not None and coordinates.shape[-1] != count:
            return (), given  # the transformer refuses it
        self._tokens = shares(count, self.size)
        given["hidden_states"] = self._mine(hidden_states, 1)
        if timestep.ndim == 2 and timestep.shape[1] == count:
            given["timestep"] = self._mine(timestep, 1)
        if coordinates is not None:
            given["video_coords"] = self._mine(coordinates, 2)
        return (), given

    def _positions(
        self, rope: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The positions of a grid are computed whole, and cut here."""
        if self._tokens is None or rotation[0].shape[1] != sum(self._tokens):
            return rotation
        cosines, sines = (self._mine(part, 1) for part in rotation)
        return cosines, sines

    def _leave(self, transformer: VideoDiT, args: tuple[Any, ...], output: Any) -> Any:
        """Join the parts of the prediction, [B, n, C] to [B, N, C]."""
        if self._tokens is None:
            return output
        part = output.sample if isinstance(output, Transformer2DModelOutput) else output[0]
        whole = self.join(part, self._tokens, 1)
        self._tokens = None
        return Transformer2DModelOutput(sample=whole) if isinstance(output, Transformer2DModelOutput) else (whole,)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        """Attend to the tokens of all processes.

        Args:
            query, key, value: [B, n, heads, D], of this process's tokens.
            attention: attends to what it is given.
        Returns:
            [B, n, heads, D].
        """
        if self._tokens is None:
            return attention(query, key, value)
        tokens, heads = self._tokens, shares(query.shape[2], self.size)
        batch, mine, _, width = query.shape
        by_heads = torch.stack([query, key, value]).split(heads, dim=3)
        shapes = [(3, batch, count, heads[self.rank], width) for count in tokens]
        whole = torch.cat(self._swap(by_heads, shapes), dim=2)
        attended = attention(*whole.unbind(0))
        back = [(batch, mine, count, width) for count in heads]
        return torch.cat(self._swap(attended.split(tokens, dim=1), back), dim=2)

    def _swap(self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Give every process its part, and take one of each shape from them."""
        sent = torch.cat([part.flatten() for part in parts])
        sizes = [torch.Size(shape).numel() for shape in shapes]
        received = sent.new_empty(sum(sizes))
        dist.all_to_all_single(received, sent, sizes, [part.numel() for part in parts], group=self.group)
        return [part.view(shape) for part, shape in zip(received.split(sizes), shapes, strict=True)]
