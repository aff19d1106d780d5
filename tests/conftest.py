"""Tiny random models, built once a session: a folder of ours, and diffusers LTX folders of three VAE generations."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# A suite in the background has SIGINT ignored, and the commands that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Of several test processes each keeps to its share of the cores (read by torch when it is first imported).
if (_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))


def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means here: a process per core, of at most 8 (each takes about 1.5 GB)."""
    return min(8, os.cpu_count() or 1)


LTX_GENERATIONS = ("0.9.0", "0.9.1", "0.9.5")

_OLD, _NEW = ("LTXVideoDownBlock3D",) * 4, ("LTXVideo095DownBlock3D",) * 4
_LTX_VAE: dict[str, dict[str, Any]] = {
    "0.9.0": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": _OLD,
        "layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, True, False),
        "decoder_block_out_channels": (8, 8, 16, 16),
        "decoder_layers_per_block": (1,) * 5,
        "decoder_spatio_temporal_scaling": (True, True, True, False),
        "timestep_conditioning": False,
    },
    "0.9.1": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": _OLD,
        "layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, True, False),
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1,) * 4,
        "decoder_spatio_temporal_scaling": (True,) * 3,
        "decoder_inject_noise": (True, True, True, False),
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2,) * 3,
        "timestep_conditioning": True,
    },
    "0.9.5": {
        "block_out_channels": (8, 16, 32, 64, 128),
        "down_block_types": _NEW,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True,) * 4,
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1,) * 4,
        "decoder_spatio_temporal_scaling": (True,) * 3,
        "decoder_inject_noise": (False,) * 4,
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2,) * 3,
        "timestep_conditioning": True,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
}
_SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


def _text_components() -> dict[str, Any]:
    """A random T5 and a tokenizer that needs no vocabulary file."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    config = T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return {"text_encoder": T5EncoderModel(config).eval(), "tokenizer": ByT5Tokenizer(extra_ids=125)}


def _fill(modules: list[Any], channels: int) -> None:
    """Leave no tensor zero and no statistic trivial."""
    import torch

    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        vae = modules[-1]
        vae.latents_mean.copy_(torch.randn(channels, generator=generator) * 0.2)
        vae.latents_std.copy_(torch.rand(channels, generator=generator) + 0.5)
        for module in modules:
            for parameter in module.parameters():
                if not parameter.any():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.fixture(scope="session")
def make_native_components() -> Callable[..., dict[str, Any]]:
    """Builds random components of our own kind (strides 4 x 8 x 8, 4 latent channels); takes VideoDiT arguments."""

    def make(**transformer: Any) -> dict[str, Any]:
        import torch
        from diffusers import FlowMatchEulerDiscreteScheduler

        from vgen.models import CausalVideoVAE, VideoDiT

        torch.manual_seed(0)
        vae = CausalVideoVAE(
            latent_channels=4,
            block_out_channels=(8, 8, 16),
            down_block_types=("LTXVideo095DownBlock3D",) * 2,
            downsample_type=("spatiotemporal", "temporal"),
            spatio_temporal_scaling=(True, True),
            layers_per_block=(1, 1, 1),
            decoder_block_out_channels=(8, 8),
            decoder_layers_per_block=(1, 1, 1),
            decoder_spatio_temporal_scaling=(True, True),
            decoder_upsample_type=("spatiotemporal", "temporal"),
            decoder_inject_noise=(False, False, False),
            upsample_residual=(True, True),
            upsample_factor=(1, 1),
        ).eval()
        patch = transformer.get("patch_size", 1) ** 2
        dit = VideoDiT(
            **{
                "in_channels": 4 * patch,
                "out_channels": 4 * patch,
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "cross_attention_dim": 24,
                "num_layers": 2,
                "caption_channels": 32,
                "rope_base_size": (4, 64, 64),
                **transformer,
            }
        ).eval()
        _fill([dit, vae], 4)
        scheduler = FlowMatchEulerDiscreteScheduler(**_SCHEDULER)
        return {"scheduler": scheduler, "vae": vae, **_text_components(), "transformer": dit}

    return make


@pytest.fixture(scope="session")
def tiny_pipeline_folder(
    tmp_path_factory: pytest.TempPathFactory, make_native_components: Callable[..., dict[str, Any]]
) -> Path:
    """A saved TextToVideoPipeline of our own kind: 32 x 32, 9 frames, 3 steps by default."""
    from vgen.pipelines import TextToVideoPipeline

    defaults = {
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "frame_rate": 8.0,
        "num_inference_steps": 3,
        "guidance_scale": 2.0,
        "max_sequence_length": 24,
        "negative_prompt": "",
    }
    folder = tmp_path_factory.mktemp("models") / "tiny"
    TextToVideoPipeline(**make_native_components(), defaults=defaults).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ltx_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders saved by diffusers' LTXPipeline, by VAE generation; 0.9.1 with its injected noise at zero."""
    import torch
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    root, folders = tmp_path_factory.mktemp("ltx"), {}
    for generation in LTX_GENERATIONS:
        torch.manual_seed(0)
        transformer = LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=32,
        ).eval()
        vae = AutoencoderKLLTXVideo(latent_channels=8, **_LTX_VAE[generation]).eval()
        _fill([transformer, vae], 8)
        for name, parameter in vae.named_parameters():
            if "per_channel_scale" in name:
                torch.nn.init.zeros_(parameter)
        folders[generation] = root / generation
        scheduler = FlowMatchEulerDiscreteScheduler(**_SCHEDULER)
        LTXPipeline(scheduler, vae, **_text_components(), transformer=transformer).save_pretrained(folders[generation])
    return folders


@pytest.fixture
def ltx_random(tmp_path: Path, ltx_folders: dict[str, Path]) -> Callable[[str], Path]:
    """Copies a folder of `ltx_folders` with a random number in every place: bfloat16 transformer, float32 VAE."""
    import torch
    from safetensors.torch import load_file, save_file

    def copy(generation: str) -> Path:
        folder = Path(shutil.copytree(ltx_folders[generation], tmp_path / f"ltx-{generation}"))
        generator = torch.Generator().manual_seed(11)
        for name, dtype in (("transformer", torch.bfloat16), ("vae", torch.float32)):
            file = folder / name / "diffusion_pytorch_model.safetensors"
            weights = {key: value.shape for key, value in load_file(file).items()}
            filled = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in weights.items()}
            save_file(filled, file, metadata={"format": "pt"})
        return folder

    return copy


@pytest.fixture
def ltx_original(tmp_path: Path, ltx_random: Callable[[str], Path]) -> Callable[..., tuple[Path, Path]]:
    """A folder of `ltx_random`, and the same model as Lightricks publishes it: `ltx.safetensors`.

    With their statistics that nobody uses; its metadata holds `config`, or nothing (`configured=False`).
    """
    import torch
    from safetensors.torch import load_file, save_file

    def make(generation: str, configured: bool = True) -> tuple[Path, Path]:
        from vgen.hub.convert import folder_to_file
        from vgen.io.weights.safetensors_file import read_header
        from vgen.models.empty import model_shapes

        folder, file = ltx_random(generation), tmp_path / "ltx.safetensors"
        folder_to_file(folder, file, model_shapes)
        idle = {"vae.per_channel_statistics.mean-of-stds": torch.randn(8)}
        metadata = {"config": read_header(file).metadata["config"], "licence": "none"} if configured else None
        save_file({**load_file(file), **idle}, file, metadata=metadata)
        return folder, file

    return make


@pytest.fixture
def paper_model(tmp_path: Path) -> Path:
    """A model folder with everything that is checked before torch is imported, and nothing that could be loaded."""
    import numpy as np
    from safetensors.numpy import save_file

    root = tmp_path / "model"
    index = {
        "_class_name": "TextToVideoPipeline",
        "defaults": {"height": 64, "width": 64, "num_frames": 17, "frame_rate": 8.0, "guidance_scale": 2.5},
        "convention": "vgen",
        "transformer": ["vgen", "VideoDiT"],
        "vae": ["vgen", "CausalVideoVAE"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    vae = {
        "patch_size": 4,
        "patch_size_t": 1,
        "spatio_temporal_scaling": [True, True],
        "downsample_type": ["spatiotemporal", "temporal"],
        "spatial_compression_ratio": None,
        "temporal_compression_ratio": None,
    }
    configs: dict[str, dict[str, Any]] = {"transformer": {"patch_size": 1}, "vae": vae, "text_encoder": {}}
    for name, config in configs.items():
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(config))
        weights = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        save_file({"weight": np.zeros(4, np.float32)}, root / name / f"{weights}.safetensors")
    for name, file in {"tokenizer": "tokenizer.json", "scheduler": "scheduler_config.json"}.items():
        (root / name).mkdir()
        (root / name / file).write_text("{}")
    (root / "model_index.json").write_text(json.dumps(index))
    return root


class Outcome(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """Runs `vgen` with the given words inside this process."""
    from vgen.cli import main

    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return Outcome(int(leaving.value.code or 0), said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, before)
