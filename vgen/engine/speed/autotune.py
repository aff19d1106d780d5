"""Measure, choose, remember: the attention backend for a shape, and whether compiled blocks are faster.

Only ways that compute the same take part, and every one is checked before it is timed. `vgen bench --tune` measures;
every other process uses what is remembered, and measures nothing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _check_attention_backend_requirements,
    dispatch_attention_fn,
)
from torch import Tensor

from vgen.engine.device import seconds
from vgen.engine.speed.tuning_store import Measured, TuningStore, bucket, key_of, shared_store
from vgen.models.transformer.attention import mask_for

logger = logging.getLogger(__name__)

DEFAULT: Final = "native"
"""torch's own choice; it stays wherever nothing else is clearly faster."""
CANDIDATES: Final[dict[str, tuple[str, ...]]] = {
    "cpu": (DEFAULT, "_native_math"),
    "cuda": (
        DEFAULT, "_native_flash", "_native_cudnn", "_native_efficient", "_native_math", "xformers", "flash", "_flash_3",
    ),
}  # fmt: skip
"""Exact backends by kind of device; those that are not installed, or refuse a shape, drop out."""
_WORTH: Final = 0.95  # a choice must take at most this share of the default's time: the rest is noise
_REPEATS: Final = 3
_ROWS: Final = 256  # queries that are compared; all of them would need the whole matrix of scores
_LARGEST_SCORES: Final = 1 << 30  # bytes of such a matrix above which `_native_math` is not tried
_TOLERANCE: Final = 1e-5
_REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError)


class AttentionTuner:
    """Says which backend computes an attention; see `vgen.models.transformer.attention.attention_chosen_by`.

    Args:
        store: where choices are remembered.
        measures: measure what is not known.

    Attributes:
        met: what it was asked for, by key.
    """

    def __init__(self, store: TuningStore | None = None, measures: bool = False) -> None:
        self.store = store or shared_store()
        self.measures = measures
        self.met: dict[str, Measured] = {}
        self._choices: dict[Any, str | None] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
        """The backend's name; None: the default.

        Args:
            query, key, value: [B, N, heads, head_dim], twice [B, L, heads, head_dim].
            mask: see VideoAttention.forward.
        """
        if _AttentionBackendRegistry.get_active_backend()[0] != AttentionBackendName.NATIVE:
            return None  # the caller has said which
        short = (query.device, query.dtype, query.shape, key.shape, None if mask is None else (mask.dtype, mask.ndim))
        if short not in self._choices:
            self._choices[short] = self._choose(query, key, mask)
        return self._choices[short]

    def _choose(self, query: Tensor, key: Tensor, mask: Tensor | None) -> str | None:
        device = query.device
        if device.type not in CANDIDATES:
            return None
        name = attention_key(query, key, mask)
        known = self.store.get(name)
        if known is None or known.choice not in CANDIDATES[device.type]:
            if not self.measures:
                return None
            known = measure_attention(query, key, mask)
            self.store.put(name, known)
        self.met[name] = known
        return None if known.choice == DEFAULT else known.choice


def attention_key(query: Tensor, key: Tensor, mask: Tensor | None) -> str:
    """What an attention's time depends on; see AttentionTuner for the shapes."""
    batch, tokens, heads, size = query.shape
    kind = "no mask" if mask is None else "bool mask" if mask.dtype == torch.bool else "additive mask"
    lengths = f"{bucket(tokens)} x {bucket(key.shape[1])}"
    return key_of("attention", query.device, query.dtype, f"{batch} x {heads} x {size}", lengths, kind)


@torch.no_grad()
def measure_attention(query: Tensor, key: Tensor, mask: Tensor | None) -> Measured:
    """Time every backend on random numbers of a shape.

    Args:
        query, key, mask: give shapes, dtype and device; their content is not used.
    """
    device = query.device
    noise = torch.Generator(device).manual_seed(0)
    numbers = [
        torch.randn(shape, generator=noise, device=device, dtype=torch.float32).to(query.dtype)
        for shape in (query.shape, key.shape, key.shape)
    ]
    hidden = _some_hidden(mask)
    truth = _reference(numbers, hidden)
    times: dict[str, float] = {}
    allowed = 0.0
    for name in CANDIDATES[device.type]:
        if name == "_native_math" and _score_bytes(query, key) > _LARGEST_SCORES:
            continue
        work = _work(name, numbers, hidden)
        try:
            _check_attention_backend_requirements(AttentionBackendName(name))
            with warnings.catch_warnings():  # torch gives its reasons for every kernel that refuses
                warnings.simplefilter("ignore")
                error = _error(work(), truth)
            if name == DEFAULT:
                allowed = 1.1 * error if query.dtype != torch.float32 else max(1.1 * error, _TOLERANCE)
            if error > allowed:  # a mask that is not heeded, another precision: not the same work
                continue
            times[name] = _fastest_run(work, device)
        except _REFUSALS as refusal:
            logger.debug("%s does not do %s: %s", name, tuple(query.shape), refusal)
    return Measured(fastest(times), times)


def fastest(times: dict[str, float], default: str = DEFAULT) -> str:
    """The quickest by name; `default` unless another one needs clearly less."""
    best = min(times, key=lambda name: times[name])
    return best if default not in times or times[best] < _WORTH * times[default] else default


def combination_key(transformer: Any, batch: int, tokens: int) -> str:
    """What the time of a transformer's step depends on.

    Args:
        transformer: a VideoDiT.
        batch, tokens: of a call.
    """
    config = transformer.config
    size = f"{config.num_layers} x {config.num_attention_heads} x {config.attention_head_dim}"
    return key_of("step", transformer.device, transformer.dtype, size, f"{batch} x {bucket(tokens)}")


def chosen_combination(transformer: Any, batch: int, tokens: int, store: TuningStore | None = None) -> str:
    """Whether blocks were measured to be faster "compiled" or "eager"; "eager" where nothing was measured."""
    known = (store or shared_store()).get(combination_key(transformer, batch, tokens))
    return "compiled" if known is not None and known.choice == "compiled" else "eager"


def _some_hidden(mask: Tensor | None) -> Tensor | None:
    """A mask of the same kind that does hide something: of each sample the second half."""
    if mask is None:
        return None
    last = torch.arange(mask.shape[-1], device=mask.device) >= (mask.shape[-1] + 1) // 2
    if mask.dtype == torch.bool:
        return (~last).expand(mask.shape).contiguous()
    return torch.zeros_like(mask).masked_fill(last, -10000.0)


def _reference(numbers: list[Tensor], mask: Tensor | None) -> Tensor:
    """The first queries' attention in float32, [B, n, heads, head_dim]."""
    query, key, value = numbers
    query, key, value = (part.float().transpose(1, 2) for part in (query[:, :_ROWS], key, value))
    if mask is not None:
        mask = mask[:, None, None] if mask.ndim == 2 else mask
        mask = mask if mask.dtype == torch.bool else mask.float()
        mask = mask[..., :_ROWS, :] if mask.shape[-2] > 1 else mask
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def _work(name: str, numbers: list[Tensor], mask: Tensor | None) -> Callable[[], Tensor]:
    backend = AttentionBackendName(name)

    def work() -> Tensor:
        return dispatch_attention_fn(*numbers, attn_mask=mask_for(backend, mask), backend=backend)

    return work


def _error(output: Tensor, truth: Tensor) -> float:
    """The largest difference; infinite where it is not a number."""
    error = float((output[:, :_ROWS].float() - truth).abs().max())
    return error if error == error else float("inf")


def _score_bytes(query: Tensor, key: Tensor) -> int:
    batch, tokens, heads, _ = query.shape
    return batch * heads * tokens * key.shape[1] * 4


def _fastest_run(work: Callable[[], Any], device: torch.device) -> float:
    return min(seconds(work, device) for _ in range(_REPEATS))
