"""On an NVIDIA GPU whole clips are those of the CPU; graphs, offloading, FP8 and the benchmark's gate work there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from vgen.bench.measure import full_float32
from vgen.bench.run import run
from vgen.bench.scenarios import scenario_named
from vgen.engine.lossy.quantize import quantize
from vgen.engine.memory.offload import offload_blocks
from vgen.engine.speed import cuda_graph
from vgen.engine.speed.autotune import CANDIDATES, measure_attention
from vgen.models import VideoDiT
from vgen.pipelines import TextToVideoPipeline

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CALL = {
    "prompt": "a red ball",
    "height": 64,
    "width": 64,
    "num_frames": 17,
    "frame_rate": 8.0,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "max_sequence_length": 24,
}


def _dit(**changes):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 48}
    made = VideoDiT(in_channels=16, out_channels=16, num_layers=4, **{**sizes, **changes}).eval()
    made.init_weights(torch.Generator().manual_seed(1))
    torch.nn.init.normal_(made.proj_out.weight, std=0.1)
    return made


def _call(device, dtype=torch.float32):
    noise = torch.Generator().manual_seed(2)
    given = {
        "hidden_states": torch.randn(2, 40, 16, generator=noise).to(dtype),
        "encoder_hidden_states": torch.randn(2, 6, 48, generator=noise).to(dtype),
        "encoder_attention_mask": torch.arange(6)[None] < torch.tensor([6, 2])[:, None],
        "timestep": torch.tensor([700.0, 700.0]),
        "video_coords": torch.rand(1, 3, 40, generator=noise),
    }
    return {name: value.to(device) for name, value in given.items()}


@pytest.mark.parametrize("generation", ["own", "0.9.1", "0.9.5"])
@full_float32()
def test_a_clip_of_the_gpu_is_that_of_the_cpu(generation, make_native_components, ltx_folders, monkeypatch, caplog):
    def load():
        if generation == "own":
            return TextToVideoPipeline(**make_native_components())
        return TextToVideoPipeline.from_pretrained(ltx_folders[generation], dtype=torch.float32)

    recorded, capture = [], cuda_graph.capture_cuda
    monkeypatch.setattr(cuda_graph, "capture_cuda", lambda work: recorded.append(1) or capture(work))
    found = {}
    for device in ("cpu", "cuda"):
        pipeline = load().to(device)
        pipeline.set_progress_bar_config(disable=True)
        for kind in ("latent", "np", "uint8"):
            result = pipeline(**CALL, output_type=kind, generator=[torch.Generator().manual_seed(3)]).frames
            found[device, kind] = torch.as_tensor(np.asarray(result.cpu() if torch.is_tensor(result) else result))
    assert len(recorded) == 3 and "could not be recorded" not in caplog.text
    torch.testing.assert_close(found["cuda", "latent"], found["cpu", "latent"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found["cuda", "np"], found["cpu", "np"], atol=1e-4, rtol=0)
    difference = (found["cuda", "uint8"].int() - found["cpu", "uint8"].int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.02


@torch.no_grad()
def test_offloaded_blocks_give_the_same_to_the_bit():
    resident, moved = _dit().cuda(), _dit()
    offload_blocks(moved, moved.transformer_blocks, "cuda")
    for _ in range(3):
        assert torch.equal(moved(**_call("cuda")).sample, resident(**_call("cuda")).sample)
    assert all(weight.is_pinned() for weight in moved.transformer_blocks.parameters())


@pytest.mark.parametrize("kind", ["fp8", "int8-weights"])
@torch.no_grad()
def test_layers_in_8_bits_are_near_the_exact_ones(kind):
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs capability 8.9")
    exact = _dit().to("cuda", torch.bfloat16)
    narrow = copy.deepcopy(exact)
    assert len(quantize(narrow, kind)) > 4 * 4
    expected, found = (model(**_call("cuda", torch.bfloat16)).sample.float() for model in (exact, narrow))
    error = float((found - expected).norm() / expected.norm())
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backends_of_attention_are_measured(dtype):
    query, text = (torch.empty(2, tokens, 4, 64, device="cuda", dtype=dtype) for tokens in (1024, 40))
    for key, mask in ((query, None), (text, None), (text, torch.ones(2, 40, device="cuda", dtype=torch.bool))):
        measured = measure_attention(query, key, mask)
        assert measured.choice in CANDIDATES["cuda"]
        assert "native" in measured.seconds and len(measured.seconds) > 1


def test_the_benchmark_finds_equal_results_in_float32():
    scenario = scenario_named("cpu-tiny")
    report = run(scenario, ("diffusers", "plain"), device=torch.device("cuda"), rounds=1)
    assert set(report["parity"]["stages"]) == {"step", "decode", "denoise"}
    assert all(arm["allocated_bytes"] < arm["peak_bytes"] for arm in report["arms"].values())
    assert report["arms"]["vgen"]["attention"] and report["matmul_flops_per_second"] > 1e12
