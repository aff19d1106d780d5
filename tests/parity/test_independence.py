"""vgen's models stand on their own, and what they save loads in plain diffusers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vgen.models
from vgen.models import CausalVideoVAE, VideoDiT

MODELS = Path(vgen.models.__file__).parent
FORBIDDEN_MODULES = ("autoencoder_kl_ltx", "transformer_ltx", "diffusers.models.autoencoders", "pipelines.ltx")
FORBIDDEN_NAMES = ("LTX", "Ltx")


def _imports(path: Path) -> list[tuple[str, list[str]]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.append((node.module or "", [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
    return found


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.py")), ids=lambda path: path.stem)
def test_no_module_imports_or_names_the_original_models(path):
    for module, names in _imports(path):
        assert not any(part in module for part in FORBIDDEN_MODULES), f"{path.name} imports {module}"
        assert not any(name.startswith(FORBIDDEN_NAMES) for name in names), f"{path.name} imports {names}"
    called = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    named = {name for name in called | attributes if "LTX" in name or "AutoencoderKLL" in name}
    assert not named, f"{path.name} uses {named}"


def test_building_and_running_loads_no_original_module():
    """In a fresh interpreter: build, run, and look at what was imported."""
    program = """
import sys, torch
from vgen.models import CausalVideoVAE, VideoDiT
dit = VideoDiT(in_channels=4, out_channels=4, num_attention_heads=1, attention_head_dim=8, cross_attention_dim=8,
               num_layers=1, caption_channels=4)
dit(torch.randn(1, 4, 4), torch.randn(1, 2, 4), torch.ones(1), num_frames=1, height=2, width=2)
vae = CausalVideoVAE(latent_channels=4, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                     down_block_types=("LTXVideoDownBlock3D",) * 2, layers_per_block=(1,) * 3,
                     decoder_layers_per_block=(1,) * 3, spatio_temporal_scaling=(True, False),
                     decoder_spatio_temporal_scaling=(True, False), decoder_inject_noise=(False,) * 3)
vae(torch.zeros(1, 3, 3, 8, 8))
print([name for name in sys.modules if "ltx" in name.lower()])
print([cls.__module__ for model in (dit, vae) for module in model.modules() for cls in type(module).__mro__
       if "ltx" in cls.__module__.lower()])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


DIT = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "cross_attention_dim": 20,
    "num_layers": 2,
    "caption_channels": 12,
}


def test_saved_models_load_in_plain_diffusers(tmp_path, vae_configs, fill_zeros):
    """A process that cannot import vgen loads all of them and gets the same numbers."""
    torch.manual_seed(0)
    dit = VideoDiT(**DIT).eval()
    dit.save_pretrained(tmp_path / "transformer")
    tokens, text = torch.randn(1, 6, 8), torch.randn(1, 3, 12)
    video, timestep = torch.rand(1, 3, 9, 32, 64) * 2 - 1, torch.tensor([0.05])
    with torch.no_grad():
        size = {"num_frames": 1, "height": 2, "width": 3}
        velocity = dit(tokens, text, torch.tensor([300.0]), torch.ones(1, 3), **size).sample
        decoded = {}
        for version, config in vae_configs.items():
            vae = fill_zeros(CausalVideoVAE(**config), "per_channel_scale")
            vae.save_pretrained(tmp_path / version)
            decoded[version] = vae(video, timestep).sample
    given = {"tokens": tokens, "text": text, "video": video, "timestep": timestep, "velocity": velocity}
    save_file(
        given | {f"decoded {version}": value for version, value in decoded.items()}, tmp_path / "tensors.safetensors"
    )
    program = """
import sys
sys.modules["vgen"] = None  # importing it now fails
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
folder = sys.argv[1]
from safetensors.torch import load_file
given = load_file(folder + "/tensors.safetensors")
names = ("tokens", "text", "video", "timestep", "velocity")
tokens, text, video, timestep, velocity = (given.pop(name) for name in names)
decoded = {name.split()[1]: value for name, value in given.items()}
dit, info = LTXVideoTransformer3DModel.from_pretrained(folder + "/transformer", output_loading_info=True)
assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
with torch.no_grad():
    a = dit(tokens, text, torch.tensor([300.0]), torch.ones(1, 3), num_frames=1, height=2, width=3).sample
    differences = [(a - velocity).abs().max().item()]
    for version, expected in decoded.items():
        vae, info = AutoencoderKLLTXVideo.from_pretrained(folder + "/" + version, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        differences.append((vae(video, timestep).sample - expected).abs().max().item())
print(len(differences), max(differences))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, difference = done.stdout.split()
    assert int(count) == 4
    assert float(difference) <= 1e-5
    assert "config attributes" not in done.stderr, done.stderr
