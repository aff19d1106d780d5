"""One benchmark: build, check parity, warm up, measure in turn, and gather it all for the report."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vgen.bench.arms import Arm, make_arms
from vgen.bench.lossy import error_of, reference_of
from vgen.bench.measure import (
    attention_used,
    full_float32,
    interleaved,
    memory_peaks,
    paired_ratio,
    quantile,
    rounds_within,
)
from vgen.bench.parity import check_parity
from vgen.bench.scenarios import STAGES, Scenario
from vgen.engine.device import CLOCKS, DTYPES, peak_flops, seconds
from vgen.engine.memory.offload import weight_bytes
from vgen.errors import RequestError
from vgen.ops import switches
from vgen.version import __version__

SCHEMA = 1
DATASHEET: dict[tuple[str, str], float] = {
    ("H100", "bfloat16"): 989e12,
    ("H200", "bfloat16"): 989e12,
    ("A100", "bfloat16"): 312e12,
    ("L40S", "bfloat16"): 362e12,
    ("4090", "bfloat16"): 165e12,
}
"""Dense FLOP/s by the maker's word; what is not here has no MFU against a datasheet."""
_AFTER_ROUNDS = 3
"""Calls of every arm that the time after the rounds comes to: peaks, hashes, FLOPs."""


@full_float32()
def run(
    scenario: Scenario,
    against: Sequence[str] = (),
    *,
    device: torch.device,
    rounds: int = 10,
    within: float | None = None,
    seed: int = 0,
    stages: Sequence[str] = STAGES,
    clock: str = "wall",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run a benchmark.

    Args:
        scenario: the work.
        against: what to compare with, see arms.make_arms.
        device: where.
        rounds: each runs every arm twice, A B B A.
        within: seconds after which all should be done: fewer rounds then, but at least one.
        seed: of weights and inputs.
        stages: which to time.
        clock: of vgen.engine.device.CLOCKS; "process" counts this process's own work on a CPU alone.
        say: called with what is under way.
    Returns:
        The report, ready for JSON.
    Raises:
        RequestError: `clock` is not known, or counts nothing of what runs on this device.
        ParityError: the arms do not compute the same.
    """
    if scenario.threads is not None and device.type == "cpu":
        torch.set_num_threads(scenario.threads)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    if clock not in CLOCKS or (clock == "process" and not alone):
        raise RequestError(f"clock={clock!r} must be wall; or process, on a CPU with one thread (--threads 1).")
    started = time.perf_counter()
    arms = make_arms(scenario, tuple(against), device, seed)
    built = time.perf_counter() - started
    say(f"built {scenario.config} in {built:.1f} s")
    cold = {arm.name: _cold(arm, device, built) for arm in arms}
    say("first run: " + ", ".join(f"{name} {first['first_run_seconds']:.4g} s" for name, first in cold.items()))
    parity = _gate(arms, say)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scenario": scenario.as_dict(),
        "seed": seed,
        "rounds": rounds,
        "clock": clock,
        "machine": _machine(device),
        "parity": parity,
        "arms": {},
        "ratios": {},
    }
    works = {stage: {arm.name: work for arm in arms if (work := arm.stage(stage)) is not None} for stage in stages}
    once = {stage: sum(seconds(work, device) for work in works[stage].values()) for stage in stages}  # a warm-up too
    if within is not None:
        call = once.get("end_to_end", sum(first["first_run_seconds"] for first in cold.values()))
        left = within - (time.perf_counter() - started) - _AFTER_ROUNDS * call
        report["rounds"] = rounds_within(rounds, sum(once.values()), left)
        say(f"rounds: {report['rounds']}")
    timed: dict[str, dict[str, list[float]]] = {arm.name: {} for arm in arms}
    for stage in stages:
        for name, times in interleaved(works[stage], report["rounds"], device, clock).items():
            timed[name][stage] = times
        if works[stage]:
            say(f"{stage}: " + ", ".join(f"{name} {quantile(timed[name][stage], 0.5):.4g} s" for name in works[stage]))
    rate = peak_flops(device, DTYPES[scenario.dtype], clock)
    report["matmul_flops_per_second"] = rate
    work_done = _flops(arms[0], stages)
    for arm in arms:
        report["arms"][arm.name] = _arm_report(arm, timed[arm.name], cold[arm.name], work_done, rate, device)
    lossy = [arm for arm in arms if arm.lossy]
    if lossy:
        reference = reference_of(arms[0])
        for arm in lossy:
            report["arms"][arm.name]["error"] = error_of(reference, arm)
    ours = arms[0].name
    report["ratios"] = {
        arm.name: {
            stage: paired_ratio(timed[ours][stage], timed[arm.name][stage])._asdict()
            for stage in timed[arm.name]
            if stage in timed[ours]
        }
        for arm in arms[1:]
    }
    return report


def _cold(arm: Arm, device: torch.device, built: float) -> dict[str, float]:
    """The first run of an arm, compilation included."""
    work = arm.stage("end_to_end")
    assert work is not None
    return {"build_seconds": built, "first_run_seconds": seconds(work, device)}


def _gate(arms: list[Arm], say: Callable[[str], None]) -> dict[str, Any]:
    exact = [arm for arm in arms if not arm.lossy]
    if not any(not arm.ours for arm in exact):
        plain = Arm("plain", arms[0].pipeline, arms[0].scenario, arms[0].inputs, off=("all",))
        exact = [*exact, plain]
    else:  # the peer comes last: everything is compared with it
        exact = sorted(exact, key=lambda arm: not arm.ours)
    parity = check_parity(exact)
    for stage, differences in parity["stages"].items():
        say(f"parity, {stage}: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    return parity


def _arm_report(
    arm: Arm,
    timed: dict[str, list[float]],
    cold: dict[str, float],
    flops: dict[str, float],
    rate: float,
    device: torch.device,
) -> dict[str, Any]:
    scenario = arm.scenario
    call, step = arm.stage("end_to_end"), arm.stage("step")
    assert call is not None and step is not None
    outputs: list[Any] = []

    def work() -> None:
        outputs.clear()
        outputs.append(call())

    peak, allocated = memory_peaks(work, device)
    models = (arm.pipeline.transformer, arm.pipeline.vae, arm.pipeline.text_encoder)
    stages: dict[str, dict[str, Any]] = {
        name: {"p50": quantile(times, 0.5), "p90": quantile(times, 0.9), "min": min(times), "seconds": times}
        for name, times in timed.items()
    }
    report: dict[str, Any] = {
        "cold": dict(cold),
        "stages": stages,
        "peak_bytes": peak,
        "allocated_bytes": allocated,
        "weight_bytes": sum(weight_bytes(model) for model in models if model is not None),
        "attention": attention_used(step),
        "precision": scenario.dtype,
        "compiled": arm.compiled,
        "lossy": list(arm.lossy),
        "parts": [name for name in switches.PARTS if name not in arm.off and arm.off != ("all",)] if arm.ours else [],
        "output_sha256": hashlib.sha256(outputs[0].tobytes()).hexdigest(),
    }
    if "end_to_end" in stages:
        whole = stages["end_to_end"]["p50"]
        report["cold"]["compile_seconds"] = max(cold["first_run_seconds"] - whole, 0.0) if arm.compiled else 0.0
        report["frames_per_second"] = scenario.num_frames / whole
        report["real_time_factor"] = scenario.num_frames / scenario.frame_rate / whole
    if "denoise" in stages:
        report["steps_per_second"] = scenario.num_inference_steps / stages["denoise"]["p50"]
    for stage in ("step", "decode"):
        if stage in stages:
            achieved = flops[stage] / stages[stage]["p50"]
            sheet = _datasheet(device, scenario.dtype)
            report[f"{stage}_rate"] = {
                "flops": flops[stage],
                "flops_per_second": achieved,
                "mfu_matmul": achieved / rate,
                "mfu_datasheet": achieved / sheet if sheet else None,
            }
    return report


def _flops(arm: Arm, stages: Sequence[str]) -> dict[str, float]:
    """Matrix products, convolutions and attention of a step and a decode, where timed; the same for every arm."""
    plain = Arm("plain", arm.pipeline, arm.scenario, arm.inputs, off=("all",))
    counted = {}
    for stage in {"step", "decode"} & set(stages):
        work = plain.stage(stage)
        assert work is not None
        with FlopCounterMode(display=False) as counter:
            work()
        counted[stage] = float(counter.get_total_flops())
    return counted


def _datasheet(device: torch.device, dtype: str) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for (card, kind), rate in DATASHEET.items() if card in name and kind == dtype), None)


def _machine(device: torch.device) -> dict[str, Any]:
    packages = {}
    for package in ("torch", "diffusers", "transformers", "xformers", "triton"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "type": device.type,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "vgen": __version__,
        **packages,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
