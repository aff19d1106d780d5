"""Saving trained weights as a pipeline folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from vgen.io.files import write_json
from vgen.pipelines import TextToVideoPipeline


def save_pipeline(pipeline: TextToVideoPipeline, folder: Path, dtype: torch.dtype) -> float:
    """Write a pipeline's folder in another number format; the pipeline itself stays as it is.

    Args:
        pipeline: what is saved.
        folder: where to.
        dtype: of all weights; the text encoder computes in float32 whatever it is stored in.
    Returns:
        The folder's size in MiB.
    """
    parts = {name: copy.deepcopy(getattr(pipeline, name)).to(dtype) for name in ("transformer", "vae", "text_encoder")}
    TextToVideoPipeline(**{**pipeline.components, **parts}).save_pretrained(folder)
    for part in ("vae", "transformer"):
        forget_origin(folder / part / "config.json")
    _compute_in_float32(folder / "text_encoder" / "config.json")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def forget_origin(config: Path) -> None:
    """Take the folder that a component was loaded from out of its saved configuration."""
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    write_json(config, content, indent=2)


def _compute_in_float32(config: Path) -> None:
    """Make a saved text encoder load as float32, whatever its weights are stored in."""
    described = json.loads(config.read_text())
    described["dtype"] = "float32"
    write_json(config, described, indent=2)
