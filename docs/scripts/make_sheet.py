"""Make the README's contact sheet: `python docs/scripts/make_sheet.py` (a minute on a laptop)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vgen.io.media.contact_sheet import contact_sheet
from vgen.pipelines import TextToVideoPipeline

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Generate one clip a prompt with seeds 0, 1, 2 ... and lay the frames out, one row a prompt."""
    prompts = (ROOT / "assets" / "prompts" / "eight.txt").read_text(encoding="utf-8").splitlines()
    pipeline = TextToVideoPipeline.from_pretrained("sprites")
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    clips = pipeline(prompts, generator=generators, output_type="np").frames
    frames = [(clip * 255).round().astype(np.uint8) for clip in clips]
    sheet = contact_sheet(frames, labels=prompts, frames_per_row=6, scale=2)
    target = ROOT / "docs" / "images" / "eight_prompts.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
