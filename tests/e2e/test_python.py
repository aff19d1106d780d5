"""Python as its users write it: diffusers' own loading, pipelines that share models."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import ModuleType

import diffusers
import pytest
import torch

import vgen
from vgen.errors import RequestError
from vgen.models.registration import _give_names
from vgen.pipelines import ImageToVideoPipeline, LatentUpsamplePipeline, TextToVideoPipeline

_FRESH = """
import sys, vgen
assert "diffusers" not in sys.modules and "torch" not in sys.modules
import diffusers
assert "vgen.pipelines" not in sys.modules
folder = sys.argv[1]
pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
print(type(pipe).__name__, type(diffusers.AutoModel.from_pretrained(folder, subfolder="transformer")).__name__)
print(hasattr(diffusers, "NoSuchPipeline"), type(vgen.ImageToVideoPipeline.from_pipe(pipe)).__name__)
"""


def test_a_fresh_process_finds_the_classes_after_import_vgen(tiny_pipeline_folder) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _FRESH, str(tiny_pipeline_folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["TextToVideoPipeline", "VideoDiT", "False", "ImageToVideoPipeline"]


def test_diffusers_imported_first_is_given_the_names_too() -> None:
    """Whether it looks names up by itself (PEP 562), by its class, or not at all."""
    for name in ("VideoDiT", "CausalVideoVAE", "LatentUpsampler", "TextToVideoPipeline", "VideoToVideoPipeline"):
        assert getattr(diffusers, name) is getattr(vgen, name)
    assert diffusers.DiffusionPipeline is vgen.DiffusionPipeline
    module = ModuleType("diffusers")
    module.__getattr__ = {"Other": 1}.__getitem__
    _give_names(module, ["VideoDiT"])
    assert (module.VideoDiT, module.Other) == (vgen.VideoDiT, 1)
    bare = ModuleType("diffusers")
    _give_names(bare, ["VideoDiT"])
    assert bare.VideoDiT is vgen.VideoDiT and not hasattr(bare, "Other")


def test_from_pipe_shares_the_models_as_they_are_and_prints_nothing(tiny_pipeline_folder, caplog, capfd) -> None:
    pipe = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder, torch_dtype=torch.bfloat16)
    with caplog.at_level(logging.INFO):
        other = ImageToVideoPipeline.from_pipe(pipe).to("cpu")
        assert other.transformer is pipe.transformer and pipe.transformer.dtype == pipe.vae.dtype == torch.bfloat16
        assert other.name_of_model == pipe.name_of_model == tiny_pipeline_folder.name
        wide = ImageToVideoPipeline.from_pipe(pipe, torch_dtype=torch.float32, defaults={"height": 64})
        assert wide.transformer.dtype == torch.float32 and wide.config.defaults == {"height": 64}
        pipe.to("cpu", torch.bfloat16)
    assert caplog.text == "" and capfd.readouterr() == ("", "")


def test_from_pipe_of_diffusers_own_keeps_its_convention(ltx_folders) -> None:
    ours = TextToVideoPipeline.from_pretrained(ltx_folders["0.9.5"])
    theirs = diffusers.LTXPipeline.from_pretrained(
        ltx_folders["0.9.5"], transformer=ours.transformer, vae=ours.vae
    )  # fmt: skip
    again = TextToVideoPipeline.from_pipe(theirs)
    assert again.transformer is ours.transformer and again.convention == ours.convention
    with pytest.raises(RequestError, match=r"has no scheduler, text_encoder, tokenizer, transformer"):
        TextToVideoPipeline.from_pipe(LatentUpsamplePipeline(vae=ours.vae, latent_upsampler=None))
