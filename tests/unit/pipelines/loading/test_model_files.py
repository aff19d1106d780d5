"""The parts of a model one by one."""

from __future__ import annotations

import pytest
import torch

from vgen.pipelines import TextToVideoPipeline
from vgen.pipelines.loading.model_files import ModelParts, lasting_name
from vgen.pipelines.text.cache import TextCache


def test_names_last(tmp_path, monkeypatch) -> None:
    (tmp_path / "sprites").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert lasting_name("sprites") == "sprites"  # a name goes before a folder that happens to be called so
    assert lasting_name("mine") == str(tmp_path / "mine")
    assert lasting_name("not/here") == "not/here"


@pytest.mark.parametrize("kind", ["native", "ltx"])
def test_parts_are_those_of_the_pipeline(tiny_pipeline_folder, ltx_folders, kind) -> None:
    folder = tiny_pipeline_folder if kind == "native" else ltx_folders["0.9.5"]
    parts, pipe = ModelParts.find(folder), TextToVideoPipeline.from_pretrained(folder)
    assert parts.convention.name == pipe.convention.name
    assert parts.strides == pipe.vae.strides
    vae = parts.load_vae()
    assert all(torch.equal(value, pipe.vae.state_dict()[name]) for name, value in vae.state_dict().items())
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    length, masked = int(parts.call_defaults["max_sequence_length"]), parts.convention.mask_text_encoder
    embeds, mask = parts.text(TextCache()).encode(["a", ""], length, masked=masked, device="cpu")
    text = pipe.encode_prompt("a", "", max_sequence_length=length)
    torch.testing.assert_close(embeds[:1], text.prompt_embeds)
    torch.testing.assert_close(embeds[1:], text.negative_prompt_embeds)
    assert torch.equal(mask[:1], text.prompt_attention_mask)
