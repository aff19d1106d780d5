"""Prints the tables of docs/memory.md: LTX-Video 2B, 768 x 512 x 121, from configurations alone."""

from __future__ import annotations

import torch

from vgen.bench.peer_memory import ARMS, peer_stages
from vgen.bench.scenarios import ARCHITECTURES
from vgen.engine.memory.plan import CUDA_CONTEXT
from vgen.engine.memory.steps import Work
from vgen.errors import OutOfMemoryError
from vgen.pipelines.loading.placement import plan_call, sizes_of_configs
from vgen.types import VideoShape

T5_XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip

if __name__ == "__main__":
    architecture = ARCHITECTURES["ltx-2b"]
    sizes = sizes_of_configs(architecture.transformer, architecture.vae, torch.bfloat16, T5_XXL)
    work = Work(VideoShape(121, 512, 768).latent(sizes.vae.strides), branches=2)
    print("estimated, not yet measured on a GPU")
    for size in (4, 6, 8, 12, 24):
        try:
            print(f"{size} GB", *plan_call(sizes, work, size * 10**9, "cuda").lines(), sep="\n  ")
        except OutOfMemoryError as error:
            print(f"{size} GB: {error}")
    plan = plan_call(sizes, work, 10**12, "cuda")
    print("| | peak | text / denoise / decode, GB |", "|---|---|---|", sep="\n")
    rows = {"vgen, default": plan.stages, "vgen, --memory 6GB": plan_call(sizes, work, 6 * 10**9, "cuda").stages}
    rows |= {f"diffusers, {arm}": peer_stages(sizes, work, arm, base=CUDA_CONTEXT) for arm in ARMS}
    for name, stages in rows.items():
        parts = " / ".join(f"{size / 1e9:.2f}" for size in stages.values())
        print(f"| {name} | {max(stages.values()) / 1e9:.2f} GB | {parts} |")
