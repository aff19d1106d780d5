"""`vgen bench --tune`: measure the ways that compute the same, remember the fastest for this machine, and show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table

from vgen.bench.arms import Arm, make_arms
from vgen.bench.measure import interleaved, quantile
from vgen.bench.scenarios import Scenario
from vgen.engine.speed.autotune import AttentionTuner, combination_key, fastest
from vgen.engine.speed.compile import compile_blocks, release_blocks
from vgen.engine.speed.fast_path import fast_path
from vgen.engine.speed.tuning_store import Measured, TuningStore, shared_store
from vgen.models.transformer.attention import attention_chosen_by


def tune(
    scenario: Scenario,
    *,
    device: torch.device,
    rounds: int = 3,
    seed: int = 0,
    combinations: bool | None = None,
    store: TuningStore | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Measured]:
    """Measure for the shapes of a scenario, and remember.

    Args:
        scenario: the work.
        device: where.
        rounds: of the combinations; each runs both twice.
        seed: of weights and inputs.
        combinations: whether compiled blocks are measured too, which takes minutes; None: on a GPU.
        store: where it is remembered; None: on disk, where generation looks.
        say: called with what is under way.
    Returns:
        What was measured, or was known already, by key.
    """
    if scenario.threads is not None and device.type == "cpu":
        torch.set_num_threads(scenario.threads)
    store = store or shared_store()
    (arm,) = make_arms(scenario, (), device, seed)
    transformer, step = arm.pipeline.transformer, arm.stage("step")
    assert step is not None
    tuner = AttentionTuner(store, measures=True)
    say(f"attention of {scenario.config}, {scenario.width}x{scenario.height}x{scenario.num_frames}")
    with attention_chosen_by(tuner), fast_path(transformer):
        step()
    measurements = dict(tuner.met)
    if combinations if combinations is not None else device.type == "cuda":
        say("blocks as they are, and compiled (this takes minutes when it is first done)")
        samples = 2 if scenario.guidance_scale > 1 else 1
        key = combination_key(transformer, samples, arm.inputs.latents.shape[1])
        measurements[key] = _combinations(arm, rounds, device)
        store.put(key, measurements[key])
    return measurements


def _combinations(arm: Arm, rounds: int, device: torch.device) -> Measured:
    """A denoising loop with blocks as they are and compiled, each warmed up by its first run."""
    blocks, loop = arm.pipeline.transformer.transformer_blocks, arm.stage("denoise")
    assert loop is not None
    compile_blocks(arm.pipeline.transformer)
    programs = [block._compiled_call_impl for block in blocks]

    def run(programs: list[Any]) -> None:
        for block, program in zip(blocks, programs, strict=True):
            block._compiled_call_impl = program
        loop()

    works = {"eager": lambda: run([None] * len(blocks)), "compiled": lambda: run(programs)}
    try:
        for work in works.values():
            work()
        seconds = {name: quantile(times, 0.5) for name, times in interleaved(works, rounds, device).items()}
    finally:
        release_blocks(arm.pipeline.transformer)
    return Measured(fastest(seconds, "eager"), seconds)


def table(measurements: dict[str, Measured]) -> Table:
    """What was measured, in milliseconds, the choice first."""
    shown = Table(title="measured and remembered; milliseconds, the fastest first", caption="* is used")
    shown.add_column("what")
    shown.add_column("times")
    for key, measured in measurements.items():
        ordered = sorted(measured.seconds.items(), key=lambda pair: pair[1])
        times = [f"{name}{'*' if name == measured.choice else ''} {value * 1e3:.3f}" for name, value in ordered]
        shown.add_row(key, "\n".join(times))
    return shown
