"""What the second draft changes: clips of test prompts with one draft and with two, judged by what the prompts say.

python docs/scripts/compare_drafts.py [PROMPTS]    (256 per tier and kind of triples take about 50 minutes of one core)
"""

from __future__ import annotations

import math
import sys

import torch

from vgen.pipelines import TextToVideoPipeline
from vgen.pipelines.passes import draft
from vgen.training.data.sprites import answer_prompts
from vgen.training.evaluate.model import generators
from vgen.training.judge.judge import score

BATCH = 16


def main(count: int) -> None:
    """Print, for each split, how many clips changed, and how many of them were right before and after."""
    pipe = TextToVideoPipeline.from_pretrained("sprites", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    one_or_two = (math.inf, draft.CLEARLY_WORSE)
    for tier in (1, 2):
        for triples in ("seen", "withheld"):
            asked = answer_prompts("test", tier, count, triples)
            changed, right = 0, [0, 0]
            for start in range(0, count, BATCH):
                part = range(start, min(start + BATCH, count))
                prompts = [asked[number][0] for number in part]
                made = []
                for factor in one_or_two:
                    draft.CLEARLY_WORSE = factor
                    made.append(pipe(prompts, generator=generators(0, part), output_type="uint8").frames)
                for number, *clips in zip(part, *made, strict=True):
                    if (clips[0] != clips[1]).any():
                        changed += 1
                        for way, clip in enumerate(clips):
                            right[way] += score(clip, asked[number][1]).joint
            print(f"tier {tier}, {triples}: {changed} of {count} changed, right {right[0]} before, {right[1]} after")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
