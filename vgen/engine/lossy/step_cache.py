"""Step caches: what the blocks of a transformer hardly change from one step to the next is not computed again.

Lossy and opt-in. The caches are diffusers'; here they are set up for our blocks, put on for the steps of one call and
taken off after it, so that nothing is carried from one call to the next. Each branch of a guidance that runs by itself
has a state of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from torch import Tensor, nn

from vgen.diffusion.guidance import Guidance, StepState
from vgen.engine.lossy.magnitudes import Magnitudes
from vgen.errors import RequestError
from vgen.models import VideoDiT
from vgen.request.lossy import StepCache, read_step_cache
from vgen.request.settings import UNDRAFTED

COMPUTED_FIRST: Final = 3
"""Steps that TaylorSeer computes before it extrapolates the first time."""
MOST_LEFT_OUT: Final = 3
"""Steps that MagCache leaves out in a row at most."""
ALWAYS_COMPUTED: Final = 0.2
"""Share of the steps, from the first on, that MagCache never leaves out."""


@contextmanager
def cached_steps(
    transformer: Any,
    cache: StepCache | str | None,
    guidance: Guidance,
    sigmas: Sequence[float],
    magnitudes: Magnitudes | None = None,
) -> Iterator[None]:
    """Inside, the steps of one call run with a cache.

    Args:
        transformer: a VideoDiT.
        cache: a StepCache or how it is spelled; None changes nothing.
        guidance: of the call.
        sigmas: of its steps.
        magnitudes: of the model, for MagCache.
    Raises:
        RequestError: what a cache cannot do.
    """
    if cache is None:
        yield
        return
    cache = cache if isinstance(cache, StepCache) else read_step_cache(cache)
    _check(transformer, cache, guidance, sigmas, magnitudes)
    transformer.enable_cache(_configuration(transformer, cache, sigmas, magnitudes))
    try:
        yield
    finally:
        transformer.disable_cache()
        _unwrap(transformer)


def _configuration(transformer: Any, cache: StepCache, sigmas: Sequence[float], magnitudes: Magnitudes | None) -> Any:
    if cache.name == "first-block":
        return FirstBlockCacheConfig(threshold=cache.value)
    if cache.name == "taylorseer":
        last = len(transformer.transformer_blocks) - 1
        return TaylorSeerCacheConfig(
            cache_interval=int(cache.value),
            disable_cache_before_step=COMPUTED_FIRST,
            taylor_factors_dtype=transformer.dtype,
            cache_identifiers=[rf"transformer_blocks\.{last}"],
            skip_predict_identifiers=[rf"transformer_blocks\.(?!{last}$)\d+"],
        )
    assert magnitudes is not None
    return MagCacheConfig(
        threshold=cache.value,
        max_skip_steps=MOST_LEFT_OUT,
        retention_ratio=ALWAYS_COMPUTED,
        num_inference_steps=len(sigmas),
        mag_ratios=magnitudes.at(sigmas),
    )


def _check(
    transformer: Any, cache: StepCache, guidance: Guidance, sigmas: Sequence[float], magnitudes: Magnitudes | None
) -> None:
    """Refuse what would fail, or silently give nonsense."""
    spelled, blocks = f"step_cache={str(cache)!r}", len(transformer.transformer_blocks)
    if transformer.is_cache_enabled:
        raise RequestError(
            f"{spelled}: the transformer has a cache already; call its disable_cache(), or leave this out."
        )
    if blocks < 2:
        raise RequestError(f"{spelled} needs a transformer of two blocks or more; this one has {blocks}.")
    nothing = torch.empty(0)
    steps = [
        guidance.branches(StepState(index, len(sigmas), torch.tensor(sigma), nothing))
        for index, sigma in enumerate(sigmas)
    ]
    if cache.name != "first-block" and len({tuple(branch.name for branch in step) for step in steps}) > 1:
        raise RequestError(
            f"{spelled} counts on the same branches at every step, and this guidance comes and goes: use first-block, "
            "or guidance at all steps or none."
        )
    skipping = [branch.skip_layers for step in steps for branch in step if branch.skip_layers is not None]
    if any(skip.mode == "transformer_block" and {0, blocks - 1} & set(skip.blocks) for skip in skipping):
        raise RequestError(
            f"{spelled} reads the first and the last block, and stg_blocks leave one of them out whole: choose blocks "
            "between, or another stg_mode."
        )
    if cache.name == "first-block" and getattr(transformer, "_parallel_config", None) is not None:
        raise RequestError(
            f"{spelled} decides by what a process sees, and the tokens are spread over several processes: use "
            "taylorseer or magcache."
        )
    if cache.name == "magcache" and magnitudes is None:
        raise RequestError(
            f"{spelled} needs the model's magnitudes: set pipeline.magnitudes (see "
            "vgen.engine.lossy.step_cache.measure_magnitudes), or use first-block or taylorseer."
        )


def _unwrap(transformer: nn.Module) -> None:
    """diffusers' hooks leave a module's own method behind as an attribute; away with it."""
    for module in transformer.modules():
        left, registry = vars(module).get("forward"), getattr(module, "_diffusers_hook", None)
        if (
            left is not None
            and registry is not None
            and not registry.hooks
            and getattr(left, "__self__", None) is module
        ):
            del module.forward


@contextmanager
def _sizes(transformer: VideoDiT) -> Iterator[list[float]]:
    """Inside, every forward adds one number: the ratio of what all blocks added, token by token, to the last time."""
    ratios: list[float] = []
    kept: dict[str, Tensor] = {}

    def begin(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept["input"] = named["hidden_states"]

    def end(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        size = (output - kept["input"]).float().norm(dim=-1)
        before = kept.get("size")
        ratios.append(1.0 if before is None or before.shape != size.shape else float((size / (before + 1e-8)).mean()))
        kept["size"] = size

    blocks = transformer.transformer_blocks
    handles = [
        blocks[0].register_forward_pre_hook(begin, with_kwargs=True),
        blocks[-1].register_forward_hook(end),
    ]
    try:
        yield ratios
    finally:
        for handle in handles:
            handle.remove()


def measure_magnitudes(pipeline: Any, prompts: Sequence[str], seed: int = 0, **settings: Any) -> Magnitudes:
    """Measure what MagCache needs, by making clips exactly.

    Args:
        pipeline: a TextToVideoPipeline.
        prompts: one clip each; the ratios are averaged.
        seed: of the first clip.
        **settings: of the calls: num_inference_steps, guidance_scale, sizes ...
    Returns:
        At the steps of the pipeline's schedule.
    Raises:
        RequestError: no prompts, or a guidance whose branches do not run as one batch at every step.
    Source: Ma et al. 2025 (MagCache), eq. 3.
    """
    if not prompts:
        raise RequestError("prompts is empty: give at least one.")
    rows: list[list[float]] = []
    for index, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(seed + index)
        with _sizes(pipeline.transformer) as ratios:
            pipeline(prompt, generator=generator, output_type="latent", **{**settings, **UNDRAFTED})
        if len(ratios) != pipeline.num_timesteps:
            raise RequestError(
                f"{len(ratios)} forwards in {pipeline.num_timesteps} steps: magnitudes are measured with one batch "
                "per step; leave out spatiotemporal guidance and guidance_batching."
            )
        rows.append(ratios)
    scale = pipeline.scheduler.config.num_train_timesteps
    sigmas = tuple(float(timestep) / scale for timestep in pipeline.scheduler.timesteps)
    return Magnitudes(sigmas, tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)))
