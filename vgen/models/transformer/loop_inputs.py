"""What VideoDiT works out before its blocks, and what of it a loop shares: text, its keys and values, modulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from vgen.models.layers import AdaLayerNormSingle, ModuleListOf, TextProjection
from vgen.models.transformer.attention import KeptText, VideoAttentionProcessor
from vgen.models.transformer.fusing import plain
from vgen.models.transformer.loop_memo import Memo, remembered, text_rows, weight_digest
from vgen.ops import switches

if TYPE_CHECKING:
    from vgen.models.transformer.video_dit import VideoDiTBlock

MOST_TIMESTEPS: Final = 256
"""Distinct timesteps of a loop that are embedded beforehand; with more, every step embeds its own."""
_MOST_BYTES: Final = 64 << 20  # of all blocks' own modulation; above it each block adds its table itself


class HoistedInputs:
    """Part of VideoDiT; see `hoisting`."""

    transformer_blocks: ModuleListOf[VideoDiTBlock]
    time_embed: AdaLayerNormSingle
    caption_projection: TextProjection
    scale_shift_table: nn.Parameter
    _memo: Memo | None = None
    _expected: Tensor | None = None
    compiled_by_choice = False
    """Whether blocks were compiled because that was measured to be faster; see vgen.engine.session."""
    weights_fixed = False
    """Whether nobody acts between calls, so that weights need not be compared; see vgen.engine.session."""
    block_runner: Callable[..., Tensor] | None = None
    """Called in place of the loop over the blocks, with that loop and its arguments; see
    vgen.engine.speed.cuda_graph."""

    @contextmanager
    def hoisting(self) -> Iterator[None]:
        """Inside, calls without gradients share what is common: positions, projected text, its keys and values.

        See vgen.models.transformer.loop_memo for what makes two calls share a result. Every call first compares the
        weights that results were made from (a tenth of all, read once), unless `weights_fixed` says that they stay.
        """
        layers = [block.attn2 for block in self.transformer_blocks]
        before, memo, expected = self._memo, Memo(), self._expected
        for owner in layers:
            owner.memo = memo
        self._memo = memo
        try:
            yield
        finally:
            for owner in layers:
                owner.memo = before
            self._memo, self._expected = before, expected

    def expect_timesteps(self, timesteps: Tensor | None) -> None:
        """Say what the calls of a loop will ask for, so that it is embedded in one batch; until `hoisting` is left.

        A call with any other timestep embeds its own. With more than MOST_TIMESTEPS every call does.

        Args:
            timesteps: [K], float32, distinct and ascending; None: nothing is known.
        """
        known = timesteps is not None and 0 < len(timesteps) <= MOST_TIMESTEPS
        self._expected = timesteps if known and self._memo is not None else None

    def _settled_memo(self) -> Memo | None:
        """The memo of the loop under way, without results of weights that have changed since."""
        memo = None if self._text_is_spread() else self._memo
        if memo is None or self.weights_fixed or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return memo
        layers = [layer for block in self.transformer_blocks for layer in block.attn2.text_layers()]
        modules = (self.time_embed, self.caption_projection, *layers)
        tables = (self.scale_shift_table, *(block.scale_shift_table for block in self.transformer_blocks))
        memo.forget_if_changed(weight_digest(chain(tables, *(module.parameters() for module in modules))))
        return memo

    def _time(self, timestep: Tensor, dtype: torch.dtype, memo: Memo | None) -> tuple[Iterable[Tensor], Tensor]:
        """Modulation of every block, see VideoDiTBlock, and shift and scale of the last norm, [B, N or 1, 2, D]."""
        batch, blocks = timestep.shape[0], self.transformer_blocks
        rows, expected = self._expected_rows(timestep) if memo is not None else None, self._expected
        if memo is None or rows is None or expected is None:
            temb, embedded = (value.unflatten(0, (batch, -1)) for value in self.time_embed(timestep.flatten(), dtype))
            return [temb] * len(blocks), embedded.unsqueeze(2) + self.scale_shift_table
        own: list[Tensor] = [block.scale_shift_table for block in blocks]
        # A block whose weights come and go (offloading) hooks into it: then only the block may touch its table.
        at_hand = all(plain(block) and block.scale_shift_table.device == rows.device for block in blocks)
        if rows.shape[1] > 1 and self.block_runner is not None:
            at_hand = False  # a recording keeps its inputs: one for all blocks, not one a block
        by_block = at_hand and len(own) * len(expected) * own[0].numel() * own[0].element_size() <= _MOST_BYTES

        def embed() -> tuple[Tensor, Tensor]:
            temb, embedded = self.time_embed(expected, dtype)
            last = embedded.unsqueeze(1) + self.scale_shift_table
            return (temb.unflatten(-1, own[0].shape) + torch.stack(own)[:, None] if by_block else temb), last

        sources = (expected, self.time_embed, self.scale_shift_table, *(own if by_block else ()))
        table, last = memo.get(("time", dtype, by_block), sources, embed)
        if not by_block:
            return [table[rows]] * len(blocks), last[rows]
        if rows.shape[1] == 1:
            return table[:, rows], last[rows]
        return (values[rows] for values in table), last[rows]  # by token: one block's at a time, they are large

    def _expected_rows(self, timestep: Tensor) -> Tensor | None:
        """Where each timestep, [B] or [B, N], stands among the expected ones: [B, 1 or N]; None if any is missing."""
        expected = self._expected
        if expected is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if expected.is_inference():  # nothing is remembered then, see Memo
            return None
        if timestep.dtype != expected.dtype or timestep.device != expected.device:
            return None
        wanted = timestep.reshape(timestep.shape[0], -1).contiguous()
        rows = torch.searchsorted(expected, wanted).clamp_(max=len(expected) - 1)
        return rows if bool((expected[rows] == wanted).all()) else None

    def _text(self, features: Tensor, mask: Tensor | None, memo: Memo | None) -> tuple[Tensor, Tensor | None]:
        """The projected text [B, L, D] and its mask; in a loop remembered, and without what no sample keeps."""
        mask = remembered(memo, "mask", (mask,), lambda: self._text_mask(mask))
        if memo is None or mask is None or mask.ndim != 2 or not switches.enabled("trimmed_text"):
            project = lambda: self.caption_projection(features)  # noqa: E731
            return remembered(memo, "text", (features, self.caption_projection), project), mask
        rows = memo.get("rows", (mask,), partial(text_rows, mask))
        length = mask.shape[1] if rows is None else max(part.length for part in rows)
        mask = mask[:, :length]  # a view: its memory and its counter are those of the whole
        if rows is not None and len(rows) == 1:
            mask = None
        trimmed = lambda: self.caption_projection(features[:, :length])  # noqa: E731
        return memo.get(("text", length), (features, self.caption_projection), trimmed), mask

    def _kept_text(
        self, text: Tensor, mask: Tensor | None, memo: Memo | None
    ) -> tuple[Sequence[KeptText | None], Tensor | None]:
        """Keys and values of the text for every block, and the mask that is left.

        Only where blocks are compiled or recorded: those would otherwise compute them at every step. Elsewhere a block
        asks the memo itself, with its weights in place.
        """
        blocks = self.transformer_blocks
        outside = self.block_runner is not None or self._blocks_are_compiled()
        ready = all(plain(block) and type(block.attn2.processor) is VideoAttentionProcessor for block in blocks)
        if memo is None or torch.is_grad_enabled() or not (outside and ready):
            return [None] * len(blocks), mask
        kept = [block.attn2.keep_text(text, mask, memo) for block in blocks]
        return [pairs for pairs, _ in kept], kept[0][1]

    def _blocks_are_compiled(self) -> bool:
        return any(block._compiled_call_impl is not None for block in self.transformer_blocks)

    def _text_is_spread(self) -> bool:
        """Whether each of several processes sees a part of the text alone."""
        return any(getattr(block.attn2.processor, "_parallel_config", None) for block in self.transformer_blocks[:1])

    def _text_mask(self, mask: Tensor | None) -> Tensor | None:
        """A mask that every attention backend takes: bool [B, L]; an additive one [B, 1, L] becomes [B, 1, 1, L].

        A sample without a single kept token attends to all of them: softmax over nothing has no answer. (Not where the
        text is spread over several processes: each would see its part alone.)
        """
        if mask is None:
            return None
        if mask.ndim == 3:
            return mask.unsqueeze(1)
        keep = mask if mask.dtype == torch.bool else mask > 0.5
        return keep if self._text_is_spread() else keep | ~keep.any(dim=-1, keepdim=True)
