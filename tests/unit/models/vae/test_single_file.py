"""Files in the original layout of LTX-Video load into VideoDiT."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from vgen.models import VideoDiT

NAMES = (("proj_in.", "patchify_proj."), ("time_embed.", "adaln_single."), ("norm_q", "q_norm"), ("norm_k", "k_norm"))


@torch.no_grad()
def test_transformer(dit, dit_inputs, tmp_path):
    original = {}
    for name, value in dit.state_dict().items():
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        original[f"model.diffusion_model.{name}"] = value
    assert not original.keys() & dit.state_dict().keys()
    save_file(original, tmp_path / "ltx.safetensors")
    dit.save_config(tmp_path / "transformer")
    loaded = VideoDiT.from_single_file(str(tmp_path / "ltx.safetensors"), config=str(tmp_path), subfolder="transformer")
    torch.testing.assert_close(loaded(**dit_inputs).sample, dit(**dit_inputs).sample)
