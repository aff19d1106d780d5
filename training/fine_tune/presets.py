"""Recipes of the commands that fine-tune, and what a memory size asks of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from vgen.errors import RequestError, bytes_text, listed
from vgen.io.files import write_text
from vgen.training.config.files import RECIPE, apply_override, placed, read_recipe
from vgen.training.data.footage.cache import CacheIndex
from vgen.training.recipe import check_recipe


@dataclass(frozen=True)
class FineTune:
    """What the commands may choose.

    Attributes:
        mode: lora or full.
        steps: optimiser steps.
        batch: clips per micro-batch.
        image_batch: pictures per micro-batch; None: as many as clips.
        lr: learning rate; None: 2e-4 for a LoRA, 1e-5 for everything.
        rank, alpha, targets: of the LoRA.
        tasks: shares of what is given, see `TaskMix`.
        weights: by folder.
        seed, device, mixed_precision, gradient_accumulation, gradient_checkpointing, base_weights, offload,
            optimizer: of the run, see the recipe.
        small_buckets: wrap repeats the samples of a bucket smaller than a batch, refuse stops.
    """

    mode: str = "lora"
    steps: int = 1500
    batch: int = 1
    image_batch: int | None = None
    lr: float | None = None
    rank: int = 32
    alpha: float | None = None
    targets: tuple[str, ...] = ("blocks",)
    tasks: Mapping[str, float] = field(default_factory=lambda: {"text": 0.75, "first": 0.25})
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    mixed_precision: str = "no"
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    base_weights: str = "keep"
    offload: bool = False
    optimizer: str = "adamw"
    small_buckets: str = "wrap"


MEMORY_PRESETS = {"8gb": 8e9, "16gb": 16e9, "24gb": 24e9, "80gb": 80e9}
"""Bytes of a device by the name of its preset."""

HEADROOM = 0.9
"""Share of a device that a run may plan for; the rest is the driver's and the allocator's."""

_SAVINGS: tuple[tuple[str, Any], ...] = (
    ("mixed_precision", "bf16"),
    ("gradient_checkpointing", True),
    ("optimizer", "adamw8bit"),
    ("base_weights", "int8"),
    ("offload", True),
)
"""What saves memory, the cheapest in time and exactness first."""

Measure = Callable[[FineTune], int]
"""Bytes that a run with these choices needs, estimated beforehand."""


def fit_memory(asked: FineTune, preset: str, measure: Measure) -> FineTune:
    """Save memory step by step until a run fits a device; nothing is saved that need not be.

    Args:
        asked: the choices so far; what saves memory among them stays.
        preset: name in `MEMORY_PRESETS`.
        measure: estimates, so that a preset is computed and not guessed.
    Raises:
        RequestError: an unknown preset, or a run that fits in no way.
    """
    if preset not in MEMORY_PRESETS:
        raise RequestError(f"preset={preset!r} is not known: use {', '.join(MEMORY_PRESETS)}.")
    allowed = MEMORY_PRESETS[preset] * HEADROOM
    needed = measure(asked)
    quantised = asked.base_weights != "keep"
    for name, value in _SAVINGS:
        if needed <= allowed:
            return asked
        if name in ("base_weights", "offload") and asked.mode != "lora":
            continue
        if (name == "base_weights" and asked.offload) or (name == "offload" and quantised):
            continue  # they cannot be combined, and what was asked for stays
        changed = replace(asked, **{name: value})
        if name == "offload":
            changed = replace(changed, base_weights="keep")
            if measure(changed) >= needed:
                continue
        asked = changed
        needed = measure(asked)
    if needed > allowed:
        raise RequestError(
            f"preset={preset}: the run needs {bytes_text(needed)} with everything that saves memory, and "
            f"{bytes_text(allowed)} are allowed; use a smaller --size or fewer --num-frames with `vgen data cache`."
        )
    return asked


def fine_tune_recipe(name: str, folder: Path, cache: Path, index: CacheIndex, asked: FineTune) -> dict[str, Any]:
    """A recipe for a cached data set.

    Args:
        name: of the run.
        folder: of the run.
        cache: index.json.
        index: what it holds.
        asked: the choices.
    Raises:
        RequestError: an unknown task, or a bucket smaller than a batch that shall be refused.
    """
    if asked.small_buckets not in ("wrap", "refuse"):
        raise RequestError(f"small_buckets={asked.small_buckets!r} is not known: use wrap or refuse.")
    small = [f"{bucket} has {count}" for bucket, count in index.buckets().items() if count < asked.batch]
    if small and asked.small_buckets == "refuse":
        raise RequestError(
            f"{len(small)} buckets hold fewer samples than a batch of {asked.batch}: {'; '.join(small[:5])}. Use "
            "--batch 1, --small-buckets wrap, or --size with `vgen data cache`, so that footage falls into one bucket."
        )
    counts: dict[int, int] = {}
    for bucket, count in index.buckets().items():
        counts[bucket.num_frames] = counts.get(bucket.num_frames, 0) + count
    images = asked.image_batch if asked.image_batch is not None else asked.batch
    unknown = set(asked.tasks) - {"text", "first", "prefix", "other"}
    if unknown:
        raise RequestError(f"tasks: {sorted(unknown)[0]!r} is not known; use text, first, prefix and other.")
    return {
        "name": name,
        "seed": asked.seed,
        "output_dir": "./",
        "device": asked.device,
        "mixed_precision": asked.mixed_precision,
        "gradient_accumulation": asked.gradient_accumulation,
        "data": {
            "kind": "footage",
            "folder": _below(folder, index.data),
            "cache": cache.parent.name,
            "weights": dict(asked.weights),
        },
        "objective": {
            "kind": "finetune",
            "model": index.model,
            "mode": asked.mode,
            "lora": {"rank": asked.rank, "alpha": asked.alpha, "targets": list(asked.targets)},
            "tasks": {name: asked.tasks.get(name, 0.0) for name in ("text", "first", "prefix", "other")},
            "gradient_checkpointing": asked.gradient_checkpointing,
            "base_weights": asked.base_weights,
            **({"offload": True} if asked.offload else {}),
        },
        "stages": [
            {
                "steps": asked.steps,
                "frames": {length: float(count) for length, count in sorted(counts.items())},
                "batch": {length: images if length == 1 else asked.batch for length in sorted(counts)},
            }
        ],
        "optimizer": {
            "name": asked.optimizer,
            "lr": asked.lr if asked.lr is not None else {"lora": 2e-4, "full": 1e-5}[asked.mode],
            "betas": [0.9, 0.99],
            "weight_decay": 0.01,
        },
        "schedule": {"name": "cosine", "warmup_steps": max(1, min(50, asked.steps // 20)), "final_ratio": 0.1},
        "ema": {"limit": 0.99},
        "every": {
            "log": max(1, min(25, asked.steps // 10)),
            "checkpoint": max(1, asked.steps // 5),
            "validate": max(1, asked.steps // 5),
        },
        "checkpoint": {"keep": 5},
    }


def _below(folder: Path, place: Path) -> str:
    """A path as a run's recipe says it: one inside the run moves with it."""
    return f"./{place.relative_to(folder)}" if place.is_relative_to(folder) else str(place)


def vae_recipe(
    name: str, folder: Path, cache: Path, index: CacheIndex, vae: Path, asked: FineTune, train: str
) -> dict[str, Any]:
    """A recipe for a VAE on the pixels of a cached data set.

    Args:
        name, folder, cache, index: as in `fine_tune_recipe`.
        vae: folder of the VAE to start from.
        asked: steps, batch, rate and what a run needs.
        train: "decoder" leaves the latents' meaning as it is, "all" does not.
    Raises:
        RequestError: unknown `train`.
    """
    if train not in ("decoder", "all"):
        raise RequestError(f"train={train!r} is not known: use decoder or all.")
    longest = max(bucket.num_frames for bucket in index.buckets())
    lengths = {longest, 1}
    clips = len(index.samples)
    recipe = fine_tune_recipe(name, folder, cache, index, asked)
    return {
        **recipe,
        "objective": {
            "kind": "vae",
            "model": {},
            "init": str(vae),
            "train": train,
            "validation_clips": min(8, clips),
            "validation_frames": longest,
            "statistics_clips": min(256, clips),
        },
        "stages": [
            {
                "steps": asked.steps,
                "frames": {length: 0.2 if length == 1 < longest else 0.8 for length in sorted(lengths)},
                "batch": dict.fromkeys(sorted(lengths), asked.batch),
            }
        ],
        "optimizer": {"lr": asked.lr if asked.lr is not None else 1e-4, "betas": [0.9, 0.99]},
        "export_dtype": "float32",
    }


def write_recipe(folder: Path, recipe: dict[str, Any], overrides: Sequence[str] = ()) -> Path:
    """Put recipe.yaml into a run's folder, once, so that a resumed run has the same recipe.

    Args:
        folder: of the run.
        recipe: its content, changed here by `overrides`.
        overrides: "key.subkey=value", none of them of `output_dir`.
    Raises:
        RequestError: the folder holds another run, or the recipe is wrong.
    """
    for override in overrides:
        apply_override(recipe, override)
    file = folder / RECIPE
    check_recipe(recipe, file)
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        stored = read_recipe(file)
        changes = [*_changes(stored, placed(yaml.safe_load(text), file))]
        shown = listed((f"{key} is {was!r:.60} there and {now!r:.60} here" for key, was, now in changes), 3)
        settings = " ".join(f"--set {shlex.quote(f'{key}={json.dumps(now)}')}" for key, _, now in changes)
        raise RequestError(
            f"{folder} already holds a run with another recipe ({shown}): `vgen train resume {folder}` goes on "
            f"with it as it was begun, `vgen train resume {folder} {settings}` with these changes; or give another "
            "folder with -o."
        )
    write_text(file, text)
    return file


def _changes(stored: Any, recipe: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs between two recipes: the key as `--set` takes it, the stored value, the other one."""
    below: list[Any] = []
    if isinstance(stored, dict) and isinstance(recipe, dict):
        below = [*dict.fromkeys([*stored, *recipe])]
        values = [(stored.get(name), recipe.get(name)) for name in below]
    elif isinstance(stored, list) and isinstance(recipe, list) and len(stored) == len(recipe):
        below = [*range(len(stored))]
        values = [*zip(stored, recipe, strict=True)]
    if not below:
        if stored != recipe:
            yield key, stored, recipe
        return
    for name, (was, now) in zip(below, values, strict=True):
        yield from _changes(was, now, f"{key}.{name}" if key else str(name))
