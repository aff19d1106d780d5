"""What `vgen train run --dry-run` estimates, what it says with `--measure`, and what a run then takes.

python docs/scripts/dry_run_check.py NAME|RECIPE.yaml FOLDER

Each in a process of its own, seconds as processor time, so that others on the machine do not count; the steps of
a run are those after the first. NAME is one of the recipes below, none of which the estimate was fitted to.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import yaml

VAE = "assets/sprites/vae"
DATA = {"tier": 2, "height": 64, "width": 64, "frame_rate": 8.0}
FLOW: dict[str, Any] = {"kind": "flow", "vae": VAE, "validation_clips": 16, "sample_clips": 4}
PLACES = {"patch_size": 2, "rope_theta": 32.0, "rope_base_size": [8, 128, 128]}
CODER: dict[str, Any] = {
    "layers_per_block": [1, 1, 1],
    "down_block_types": ["LTXVideo095DownBlock3D", "LTXVideo095DownBlock3D"],
    "downsample_type": ["spatiotemporal", "temporal"],
    "spatio_temporal_scaling": [True, True],
    "decoder_layers_per_block": [2, 1, 1],
    "decoder_spatio_temporal_scaling": [True, True],
    "decoder_upsample_type": ["spatiotemporal", "temporal"],
    "decoder_inject_noise": [False, False, False],
    "upsample_residual": [True, True],
    "upsample_factor": [1, 1],
    "decoder_causal": True,
    "patch_size": 4,
    "patch_size_t": 1,
}
RECIPES: dict[str, dict[str, Any]] = {
    "clips_of_33": {
        "seed": 3, "mixed_precision": "bf16", "data": DATA, "every": {"log": 1, "checkpoint": 6, "validate": 6},
        "objective": {
            **FLOW, "model": {"num_attention_heads": 5, "attention_head_dim": 64, "num_layers": 5, **PLACES},
            "latents": {"groups": {33: 256}}, "tasks": {"text": 0.5, "first": 0.3, "prefix": 0.2, "other": 0.0},
            "validation_frames": 33, "sample_steps": 8,
        },
        "stages": [{"steps": 12, "frames": {33: 1.0}, "batch": {33: 12}}],
    },
    "all_tasks": {
        "seed": 7, "mixed_precision": "bf16", "activation_checkpointing": True, "data": DATA,
        "every": {"log": 1, "checkpoint": 8, "validate": 8},
        "objective": {
            **FLOW, "model": {"num_attention_heads": 6, "attention_head_dim": 48, "num_layers": 4, **PLACES},
            "latents": {"groups": {9: 256}}, "tasks": {"text": 0.3, "first": 0.2, "prefix": 0.1, "other": 0.4},
            "validation_frames": 9, "sample_steps": 4,
        },
        "stages": [{"steps": 16, "frames": {9: 1.0}, "batch": {9: 20}}],
    },
    "vae": {
        "seed": 4, "data": {**DATA, "workers": 1}, "every": {"log": 1, "checkpoint": 6, "validate": 6},
        "objective": {
            "kind": "vae", "validation_clips": 8, "statistics_clips": 32,
            "model": {**CODER, "latent_channels": 12, "block_out_channels": [48, 48, 96],
                      "decoder_block_out_channels": [48, 72]},
        },
        "stages": [{"steps": 12, "frames": {1: 0.3, 9: 0.7}, "batch": {1: 24, 9: 6}}],
    },
    "narrow_vae": {
        "seed": 5, "mixed_precision": "bf16", "data": {**DATA, "workers": 1},
        "every": {"log": 1, "checkpoint": 6, "validate": 6},
        "objective": {
            "kind": "vae", "validation_clips": 12, "statistics_clips": 32,
            "model": {**CODER, "latent_channels": 10, "block_out_channels": [40, 40, 80],
                      "decoder_block_out_channels": [40, 60]},
        },
        "stages": [{"steps": 12, "frames": {1: 0.3, 17: 0.7}, "batch": {1: 24, 17: 3}}],
    },
}  # fmt: skip


def estimated(recipe: str, changes: list[str], measure: bool = False) -> None:
    """Print what the dry run says."""
    from vgen.engine.memory.allocator import keep_freed_memory
    from vgen.training.estimate.dry_run import dry_run
    from vgen.training.recipe import load_recipe

    keep_freed_memory()
    estimate = dry_run(load_recipe(recipe, changes), clock=time.process_time, measure=measure)
    step = estimate.training / load_recipe(recipe, changes).total_steps
    print(
        f"{'--measure' if measure else 'estimated'}: {estimate.peak / 2**30:.2f} GiB, {step:.3g} s a step", flush=True
    )


def estimated_from_steps(recipe: str, changes: list[str]) -> None:
    """Print what the dry run says with --measure."""
    estimated(recipe, changes, measure=True)


def measured(recipe: str, changes: list[str]) -> None:
    """Train, and print what it took."""
    from vgen.engine.memory.allocator import keep_freed_memory
    from vgen.training import loop
    from vgen.training.run import run_recipe

    keep_freed_memory()
    began: list[float] = []
    away = 0.0

    def outside(work: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            nonlocal away
            start = time.process_time()
            try:
                return work(*arguments)
            finally:
                away += time.process_time() - start

        return timed

    def counted(work: Any) -> Any:
        def timed(*arguments: Any, **more: Any) -> Any:
            began.append(time.process_time() - away)
            return work(*arguments, **more)

        return timed

    loop.validate, loop.save = outside(loop.validate), outside(loop.save)
    loop._accumulate_gradients = counted(loop._accumulate_gradients)
    run_recipe(recipe, changes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    step = (began[-1] - began[1]) / (len(began) - 2)
    print(f"the run: {peak:.2f} GiB, {step:.3g} s a step", flush=True)


def main() -> None:
    """Estimate, measure steps, then train."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    content = (
        {"name": name, "num_threads": 1, **RECIPES[name]} if name in RECIPES else yaml.safe_load(Path(name).read_text())
    )
    recipe.write_text(yaml.safe_dump(content))
    changes = [f"output_dir={folder / 'run'}"]
    context = multiprocessing.get_context("spawn")
    for work in (estimated, estimated_from_steps, measured):
        process = context.Process(target=work, args=(str(recipe), changes))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
