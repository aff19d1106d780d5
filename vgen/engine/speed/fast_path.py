"""What the steps of one denoising loop share, computed once: positions, text with its keys and values, modulation.

`VideoDiT.forward` is the plain algorithm: embed, blocks, out. For the time of a loop a `FastPath` takes the place of
its first two steps. It computes the same, remembers what does not change from step to step, and hands the blocks to a
recorder where there is one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Final

import torch
from torch import Tensor

from vgen.engine.speed.compile import is_compiled
from vgen.engine.speed.loop_memo import Memo, TextRows, text_rows, weight_digest
from vgen.models import VideoDiT
from vgen.models.fusing import plain
from vgen.models.transformer.attention import KeptText, VideoAttention, VideoAttentionProcessor
from vgen.models.transformer.block import BlockInputs
from vgen.models.transformer.skip import BlockSkip
from vgen.models.transformer.video_dit import Grid, check_tokens
from vgen.ops import switches

MOST_TIMESTEPS: Final = 256
"""Distinct timesteps of a loop that are embedded beforehand; with more, every step embeds its own."""
_MOST_BYTES: Final = 64 << 20  # of all blocks' own modulation; above it each block adds its table itself


@contextmanager
def fast_path(transformer: VideoDiT, hoists: bool = True) -> Iterator[FastPath]:
    """Inside, calls of a transformer take the fast path.

    Args:
        transformer: whose calls without gradients share what is common.
        hoists: whether anything is remembered; else only a recorder makes a difference.
    """
    layers, before = [block.attn2 for block in transformer.transformer_blocks], transformer.fast_path
    keepers = [layer.text_keeper for layer in layers]
    path = FastPath(transformer, hoists)
    transformer.fast_path = path
    for layer in layers:
        layer.text_keeper = path if hoists else None
    try:
        yield path
    finally:
        transformer.fast_path = before
        for layer, keeper in zip(layers, keepers, strict=True):
            layer.text_keeper = keeper


class FastPath:
    """The first two steps of a transformer's forward, for the calls of one loop.

    See vgen.engine.speed.loop_memo for what makes two calls share a result.

    Attributes:
        memo: what is remembered; None: nothing.
        recorder: called in place of the loop over the blocks, with that loop and its input; see
            vgen.engine.speed.cuda_graph.
        weights_fixed: nobody acts between calls, so that weights need not be compared. Otherwise each call first
            compares the weights that results were made from (a tenth of all, read once).
        looping: its loop is under way.
        thread: of the call.
    """

    def __init__(self, transformer: VideoDiT, hoists: bool = True) -> None:
        self.transformer = transformer
        self.memo = Memo() if hoists else None
        self.recorder: Callable[..., Tensor] | None = None
        self.weights_fixed = self.looping = False
        self.thread = threading.get_ident()
        self._expected: Tensor | None = None

    def expect_timesteps(self, timesteps: Tensor | None) -> None:
        """Say what the calls of a loop will ask for, so that it is embedded in one batch.

        A call with any other timestep embeds its own. With more than MOST_TIMESTEPS every call does.

        Args:
            timesteps: [K], float32, distinct and ascending; None: nothing is known.
        """
        known = timesteps is not None and 0 < len(timesteps) <= MOST_TIMESTEPS
        self._expected = timesteps if known and self.memo is not None else None

    def embed(
        self,
        hidden_states: Tensor,
        features: Tensor,
        timestep: Tensor,
        mask: Tensor | None,
        grid: Grid,
        coordinates: Tensor | None,
    ) -> tuple[BlockInputs, Tensor]:
        """See VideoDiT.embed."""
        model, memo = self.transformer, self._settled_memo()
        if memo is None:
            return model.embed(hidden_states, features, timestep, mask, grid, coordinates)
        rotate = partial(model.rope, hidden_states, *grid, coordinates)
        rotation = rotate() if isinstance(grid[3], Tensor) else memo.get(("rotation", *grid), (coordinates,), rotate)
        check_tokens(hidden_states, timestep, rotation)
        tokens = model.proj_in(hidden_states)
        modulation, last = self._time(timestep, tokens.dtype, memo)
        text, mask = self._text(features, mask, memo)
        return BlockInputs(tokens, text, mask, rotation, modulation), last

    def run_blocks(self, inputs: BlockInputs, skips: Sequence[BlockSkip | None] | None = None) -> Tensor:
        """See VideoDiT.run_blocks."""
        if self._needs_text():
            blocks = self.transformer.transformer_blocks
            kept = [self.keep_text(block.attn2, inputs.text, inputs.mask) for block in blocks]
            inputs = inputs._replace(kept_text=[pairs for pairs, _ in kept], mask=kept[0][1])
        if self.recorder is None or skips is not None:
            return self.transformer.run_blocks(inputs, skips)
        return self.recorder(self.transformer.run_blocks, inputs)

    def keep_text(self, attention: VideoAttention, text: Tensor, mask: Tensor | None) -> tuple[KeptText, Tensor | None]:
        """Keys and values of the text, remembered, without padding, and the mask that is then still needed.

        Args:
            attention: a cross-attention.
            text: [B, L, cross_attention_dim].
            mask: see VideoAttention.forward.
        """
        assert self.memo is not None
        rows = None
        if mask is not None and mask.ndim == 2 and switches.enabled("trimmed_text"):
            rows = self.memo.get("rows", (mask,), partial(text_rows, mask))
        name, sources = ("text", id(attention)), (text, mask, *attention.text_layers())
        kept = self.memo.get(name, sources, partial(_keys_and_values, attention, text, rows))
        return kept, mask if rows is None else None

    def _needs_text(self) -> bool:
        """Whether compiled or recorded blocks would compute keys and values at every step; others ask `keep_text`."""
        if torch.is_grad_enabled() or self._in_use() is None:
            return False
        if self.recorder is None and not is_compiled(self.transformer):
            return False
        blocks = self.transformer.transformer_blocks  # with weights in place, and attention as it is known here
        return all(plain(block) and type(block.attn2.processor) is VideoAttentionProcessor for block in blocks)

    def _in_use(self) -> Memo | None:
        return None if self.transformer.text_is_spread else self.memo

    def _settled_memo(self) -> Memo | None:
        """The memo, without results of weights that have changed since."""
        memo, model = self._in_use(), self.transformer
        if memo is None or self.weights_fixed or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return memo
        layers = [layer for block in model.transformer_blocks for layer in block.attn2.text_layers()]
        modules = (model.time_embed, model.caption_projection, *layers)
        tables = (model.scale_shift_table, *(block.scale_shift_table for block in model.transformer_blocks))
        memo.forget_if_changed(weight_digest(chain(tables, *(module.parameters() for module in modules))))
        return memo

    def _time(self, timestep: Tensor, dtype: torch.dtype, memo: Memo) -> tuple[Iterable[Tensor], Tensor]:
        """As VideoDiT.embed_time: expected timesteps are looked up, each block's own table added where possible."""
        model, expected, rows = self.transformer, self._expected, self._expected_rows(timestep)
        if rows is None or expected is None:
            return model.embed_time(timestep, dtype)
        blocks = model.transformer_blocks
        own: list[Tensor] = [block.scale_shift_table for block in blocks]
        # A block whose weights come and go (offloading) hooks into it: then only the block may touch its table.
        at_hand = all(plain(block) and block.scale_shift_table.device == rows.device for block in blocks)
        if rows.shape[1] > 1 and self.recorder is not None:
            at_hand = False  # a recording keeps its inputs: one for all blocks, not one per block
        by_block = at_hand and len(own) * len(expected) * own[0].numel() * own[0].element_size() <= _MOST_BYTES

        def embed() -> tuple[Tensor, Tensor]:
            temb, embedded = model.time_embed(expected, dtype)
            last = embedded.unsqueeze(1) + model.scale_shift_table
            return (temb.unflatten(-1, own[0].shape) + torch.stack(own)[:, None] if by_block else temb), last

        sources = (expected, model.time_embed, model.scale_shift_table, *(own if by_block else ()))
        table, last = memo.get(("time", dtype, by_block), sources, embed)
        if not by_block:
            return [table[rows]] * len(blocks), last[rows]
        if rows.shape[1] == 1:
            return table[:, rows], last[rows]
        return (values[rows] for values in table), last[rows]  # per token: one block's at a time, they are large

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

    def _text(self, features: Tensor, mask: Tensor | None, memo: Memo) -> tuple[Tensor, Tensor | None]:
        """The projected text [B, L, D] and its mask, without what no sample keeps."""
        project = self.transformer.caption_projection
        mask = memo.get("mask", (mask,), partial(self.transformer.text_mask, mask))
        if mask is None or mask.ndim != 2 or not switches.enabled("trimmed_text"):
            return memo.get("text", (features, project), lambda: project(features)), mask
        rows = memo.get("rows", (mask,), partial(text_rows, mask))
        length = mask.shape[1] if rows is None else max(part.length for part in rows)
        mask = mask[:, :length]  # a view: its memory and its counter are those of the whole
        text = memo.get(("text", length), (features, project), lambda: project(features[:, :length]))
        return text, None if rows is not None and len(rows) == 1 else mask


def _keys_and_values(attention: VideoAttention, text: Tensor, rows: Sequence[TextRows] | None) -> KeptText:
    """One pair for each run of samples with texts of one length; one for all without `rows`."""
    texts = [text] if rows is None else [text[part.start : part.stop, : part.length] for part in rows]
    projected = map(attention.project_text, texts)
    return tuple((attention.norm_k.rotated(key, None), value) for key, value in projected)
