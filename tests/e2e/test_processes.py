"""Two processes train what one does: plain, and with everything sharded; each goes on from what the other left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vgen.errors import CheckpointError, RequestError
from vgen.training.data.plan import BatchPlan
from vgen.training.recipe import load_recipe
from vgen.training.run import run_recipe

TINY: dict[str, Any] = json.loads((Path(__file__).parents[1] / "tiny_models.json").read_text())
COMMON: dict[str, Any] = {
    "num_threads": 1,
    "device": "cpu",
    "data": {"tier": 1, "height": 16, "width": 16, "workers": 0},
    "every": {"log": 1, "checkpoint": 2, "validate": 4},
    "gradient_accumulation": 2,
    "export_dtype": "float32",
    "optimizer": {"lr": 2e-3},
}
VAE_RECIPE: dict[str, Any] = {
    **COMMON,
    "name": "vae",
    "objective": {
        "kind": "vae", "model": TINY["vae"], "validation_clips": 2, "validation_frames": 5, "statistics_clips": 4,
        "foreground_weight": 1.0,
    },
    "stages": [{"steps": 4, "frames": {1: 0.5, 5: 0.5}, "batch": {1: 4, 5: 2}, "crop": 8}],
}  # fmt: skip
FLOW_RECIPE: dict[str, Any] = {
    **COMMON,
    "name": "flow",
    "objective": TINY["flow_objective"],
    "stages": [{"steps": 4, "frames": {1: 0.3, 5: 0.7}, "batch": {1: 4, 5: 4}}],
}  # fmt: skip
SCRIPT = Path(__file__).with_name("processes.py")


def _write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def _losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def _validation(run: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {name: value for row in rows for name, value in row.items() if name.startswith("validation/")}


def _two(*jobs: list[str]) -> None:
    words = [word for job in jobs for word in ("+", *job)][1:]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone",
        str(SCRIPT), *words,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=580, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One process, two, and two that share the weights, on the same recipes; one of those is resumed half way.

    One run of two is asked to stop at once, and goes on by the command.
    """
    root = tmp_path_factory.mktemp("processes")
    vae = _write(root / "vae.yaml", VAE_RECIPE)
    alone = run_recipe(vae, [f"output_dir={root / 'vae1'}"])
    content = {**FLOW_RECIPE, "objective": {**FLOW_RECIPE["objective"], "vae": str(alone / "export")}}
    flow = _write(root / "flow.yaml", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vgen.training.data.tokenizer._CORPUS_CAPTIONS", 300)
        made = {"vae1": alone, "flow1": run_recipe(flow, [f"output_dir={root / 'flow1'}"])}
    for name in ("flow2", "flow_fsdp"):  # the tokenizer is fitted once
        (root / name).mkdir()
        (root / name / "tokenizer").symlink_to(root / "flow1" / "tokenizer")
        (root / name / "latents").symlink_to(root / "flow1" / "latents")
    stopped = root / "stopped"
    stopped.mkdir()
    (stopped / "stop").touch()
    quick = [f"output_dir={stopped}", "gradient_accumulation=1"]  # so that the stop comes after a whole step
    sharded = [flow, f"output_dir={root / 'flow_fsdp'}", "sharding=fsdp", "activation_checkpointing=true"]
    _two(
        [vae, f"output_dir={root / 'vae2'}"],
        [flow, f"output_dir={root / 'flow2'}"],
        sharded,
        ["cut", str(root / "flow_fsdp"), "2"],
        sharded,
        [vae, f"output_dir={root / 'vae_fsdp'}", "sharding=fsdp", "every.checkpoint=1"],
        [vae, *quick],
        ["list", str(stopped)],
        ["vgen", "train", "run", vae, *quick],
    )
    names = ("vae2", "flow2", "flow_fsdp", "vae_fsdp", "stopped")
    return {**made, **{name: root / name for name in names}, "root": root}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vae", "flow"])
@pytest.mark.parametrize("how", ["2", "_fsdp"])
def test_the_loss_curve_does_not_depend_on_the_processes(runs: dict[str, Path], kind: str, how: str) -> None:
    alone, together = _losses(runs[f"{kind}1"]), _losses(runs[f"{kind}{how}"])
    assert len(alone) == 4 and alone[0] != alone[-1]
    assert together == pytest.approx(alone, rel=2e-4)
    measured = _validation(runs[f"{kind}{how}"])
    assert measured and measured == pytest.approx(_validation(runs[f"{kind}1"]), rel=2e-3)
    weights = [
        load_file(next((runs[name] / "export").rglob("diffusion_pytorch_model.safetensors")))
        for name in (f"{kind}1", f"{kind}{how}")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0.02, atol=2e-3, msg=name)


@pytest.mark.slow
def test_both_processes_stop_together_and_the_command_goes_on(runs: dict[str, Path]) -> None:
    """One journal, one set of checkpoints, and a stop that both agree on."""
    run = runs["stopped"]
    assert (run / "checkpoints.txt").read_text() == "step-00000001"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert (run / "export" / "config.json").is_file()


@pytest.mark.slow
def test_another_number_of_processes_goes_on(runs: dict[str, Path], tmp_path: Path) -> None:
    """Two processes began; one ends it."""
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(runs["vae2"], copy)
    shutil.rmtree(copy / "export")
    shutil.rmtree(copy / "checkpoints" / "step-00000004")
    run_recipe(runs["root"] / "vae.yaml", [f"output_dir={copy}"])
    assert _losses(copy) == pytest.approx(_losses(runs["vae1"]), rel=2e-4)


@pytest.mark.slow
def test_sharded_checkpoints_are_safetensors_and_refuse_another_way(runs: dict[str, Path]) -> None:
    folder = runs["vae_fsdp"] / "checkpoints"
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000003", "step-00000004"]
    names = {path.name for path in (folder / "step-00000004").iterdir()}
    assert {"state.json", "manifest.json"} < names
    assert all(name.endswith(".safetensors") for name in names - {"state.json", "manifest.json"})
    with pytest.raises(CheckpointError, match="written with sharding: fsdp, and the recipe says sharding: none"):
        run_recipe(runs["root"] / "vae.yaml", [f"output_dir={runs['vae_fsdp']}"])


def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path / "vae.yaml", VAE_RECIPE))
    with pytest.raises(RequestError, match=r"stages.0.batch.1=4 cannot be split over 3 processes.*use 6"):
        BatchPlan(recipe.stages, 0, 0, 3)


def test_sharding_needs_several_processes_and_adamw(tmp_path: Path) -> None:
    path = _write(tmp_path / "vae.yaml", VAE_RECIPE)
    with pytest.raises(RequestError, match="one was started"):
        run_recipe(path, [f"output_dir={tmp_path / 'run'}", "sharding=fsdp"])
    with pytest.raises(RequestError, match=r"needs optimizer\.name='adamw'"):
        load_recipe(path, ["sharding=fsdp", "optimizer.name=muon"])
