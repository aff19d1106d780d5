"""How often clips of the lossy ways are right: `python docs/scripts/judge_lossy.py int8`, see docs/speed.md.

Prints the model's hash and defaults. Then, for the exact way and each that is named, the share of prompts of the test
split (tier 1, seen) whose clip shows colour, shape and motion as asked, and how many times as fast the calls are, by
processor time.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from vgen.bench import lossy
from vgen.engine.lossy.step_cache import measure_magnitudes
from vgen.hub.find import model_defaults, model_hash, resolve_model
from vgen.pipelines import TextToVideoPipeline
from vgen.training.data.sprites.world import answer_prompts
from vgen.training.judge.judge import score

BATCH = 16


def made(way: str, prompts: list[str], model: str) -> tuple[np.ndarray, float]:
    """Clips uint8 [B, F, H, W, 3] of the prompts, seeds 0, 1, 2 ..., and the processor seconds of the calls."""
    pipeline = TextToVideoPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    settings = lossy.settings_of(way) if way != "exact" else {}
    lossy.apply(way, pipeline.transformer)
    if way.startswith("magcache"):
        pipeline.magnitudes = measure_magnitudes(pipeline, prompts[:1], seed=1000)
    clips, began = [], time.process_time()
    for begin in range(0, len(prompts), BATCH):
        part = prompts[begin : begin + BATCH]
        sources = [torch.Generator().manual_seed(begin + place) for place in range(len(part))]
        clips.append(np.asarray(pipeline(part, generator=sources, output_type="uint8", **settings).frames))
    return np.concatenate(clips), time.process_time() - began


def main() -> None:
    """Print a row a way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="+")
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--prompts", type=int, default=96)
    arguments = parser.parse_args()
    asked = answer_prompts("test", 1, arguments.prompts, "seen")
    texts, exact = [text for text, _ in asked], 0.0
    folder = resolve_model(arguments.model)
    print(f"{arguments.model}, hash {model_hash(folder)[:12]}, by default {model_defaults(folder)}")
    made("exact", texts[:BATCH], arguments.model)  # what is compiled or loaded once does not count
    for way in ("exact", *arguments.ways):
        clips, seconds = made(way, texts, arguments.model)
        exact = exact or seconds
        right = np.mean([score(clip, key).joint for clip, (_, key) in zip(clips, asked, strict=True)])
        print(f"{way:24s} {right:7.1%} right of {len(asked)}, {exact / seconds:.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
