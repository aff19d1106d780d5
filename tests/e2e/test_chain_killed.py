"""A chain of recipes, killed in the midst of two of them and started again, ends as if it had never been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from vgen.training.checkpoint.store import CheckpointStore

NAMES = ["first", "second", "third"]
RECIPE: dict[str, Any] = {
    "num_threads": 1,
    "data": {"tier": 1, "height": 16, "width": 16, "workers": 0},
    "every": {"log": 1, "checkpoint": 2, "validate": 0},
    "objective": {
        "kind": "vae",
        "model": {
            "latent_channels": 4,
            "block_out_channels": [8, 8, 8],
            "layers_per_block": [1, 1, 1],
            "down_block_types": ["LTXVideo095DownBlock3D", "LTXVideo095DownBlock3D"],
            "downsample_type": ["spatiotemporal", "temporal"],
            "spatio_temporal_scaling": [True, True],
            "decoder_block_out_channels": [8, 8],
            "decoder_layers_per_block": [1, 1, 1],
            "decoder_spatio_temporal_scaling": [True, True],
            "decoder_upsample_type": ["spatiotemporal", "temporal"],
            "decoder_inject_noise": [False, False, False],
            "upsample_residual": [True, True],
            "upsample_factor": [1, 1],
            "decoder_causal": True,
        },
        "validation_clips": 2, "validation_frames": 5, "statistics_clips": 4,
    },
    "stages": [{"steps": 40, "frames": {1: 1.0}, "batch": {1: 2}}],
}  # fmt: skip


def _write_chain(folder: Path) -> Path:
    """The first recipe begins with nothing, each other one trains the decoder of the one before."""
    for name, before in zip(NAMES, [None, *NAMES[:-1]], strict=True):
        begun = {} if before is None else {"train": "decoder", "init": f"runs/{before}/export"}
        content = {**RECIPE, "name": name, "objective": {**RECIPE["objective"], **begun}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    chain = folder / "all.yaml"
    chain.write_text(yaml.safe_dump({"chain": [f"{name}.yaml" for name in NAMES]}))
    return chain


def _start(chain: Path, folder: Path, kill_in: str | None = None) -> str:
    """The command itself, in a folder of its own; returns what it said until it ended or was killed."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "vgen", "train", "run", str(chain)]
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out)
        if kill_in is not None:
            awaited, deadline = folder / "runs" / kill_in / "checkpoints" / "step-00000002", time.monotonic() + 300
            while not awaited.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        assert process.wait() == (0 if kill_in is None else -signal.SIGKILL)
    return (folder / "out").read_text()


@pytest.mark.slow
def test_a_chain_killed_in_two_recipes_goes_on_to_the_same_end(tmp_path: Path) -> None:
    chain, whole, killed = _write_chain(tmp_path), tmp_path / "whole", tmp_path / "killed"
    _start(chain, whole)
    _start(chain, killed, "second")
    exports = [killed / "runs" / name / "export" for name in NAMES]
    assert exports[0].is_dir() and not exports[1].exists()
    made = exports[0].stat().st_mtime_ns
    said = [_start(chain, killed, "third"), _start(chain, killed)]
    for text, done in zip(said, NAMES, strict=False):
        assert f"{done} is done" in text and "resuming at step" in text
    assert exports[0].stat().st_mtime_ns == made, "a recipe that is done is not done again"
    for name in NAMES:
        ends = [where / "runs" / name for where in (whole, killed)]
        stores = [CheckpointStore(end / "checkpoints") for end in ends]
        states = [store.load(store.path(40)) for store in stores]
        leaves = [tree_leaves((state.model, state.ema, state.optimizer["state"])) for state in states]
        assert len(leaves[0]) == len(leaves[1])
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*leaves, strict=True))
        weights = [load_file(end / "export" / "diffusion_pytorch_model.safetensors") for end in ends]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
