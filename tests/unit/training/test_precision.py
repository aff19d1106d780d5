"""bfloat16 is computed in where a processor has instructions for it, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vgen.training.objectives.flow.config import FineTuneObjectiveConfig
from vgen.training.precision import computes_bfloat16
from vgen.training.provenance import record
from vgen.training.recipe import Recipe

FLOW = {"kind": "flow", "vae": "x", "model": {}, "latents": {"groups": {1: 1}}, "text_encoder": {"d_model": 16}}
PLAIN: dict[str, Any] = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}


def recipe(objective: dict[str, Any], **changes: Any) -> Recipe:
    stages = [{"steps": 1, "frames": {1: 1.0}, "batch": {1: 1}}]
    return Recipe.model_validate({"name": "x", "device": "cpu", "objective": objective, "stages": stages, **changes})


def on(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**PLAIN, **found}, raising=False)


@pytest.mark.parametrize(
    ("found", "has"),
    [({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"architecture": "aarch64"}, True)],
)
def test_an_x86_processor_needs_instructions_for_it(
    found: dict[str, Any], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, **found)
    assert computes_bfloat16("cpu") is has
    assert computes_bfloat16("cuda") is True
    assert recipe(FLOW, mixed_precision="bf16").autocasts is has
    assert recipe(FLOW, mixed_precision="no").autocasts is False


def test_fine_tuning_holds_bfloat16_and_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch)
    objective = FineTuneObjectiveConfig(kind="finetune", model="x")
    assert recipe(FLOW, mixed_precision="bf16").model_copy(update={"objective": objective}).autocasts


def test_a_torch_that_cannot_say_computes_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert computes_bfloat16("cpu") is True


def test_the_record_says_what_was_computed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(FLOW, mixed_precision="bf16")
    hashes = set()
    for has, said in ((False, "no"), (True, "bf16")):
        on(monkeypatch, avx512_bf16=has)
        made = json.loads(json.dumps(record(asked, tmp_path / "log.jsonl", 1)))
        assert made["mixed_precision"] == said
        hashes.add(made["recipe_sha256"])
    assert len(hashes) == 1  # it is the same recipe everywhere
