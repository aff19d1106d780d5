"""Lossy ways on a tiny pipeline: near the exact clip, equal to it where nothing is left out, the same every time."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from vgen.engine.lossy.quantize import Fp8Linear, Int8Linear, Int8WeightLinear, quantize, rowwise_int8
from vgen.engine.lossy.step_cache import measure_magnitudes
from vgen.errors import RequestError
from vgen.io.media.video import read_metadata
from vgen.models import VideoDiT
from vgen.pipelines import ImageToVideoPipeline, TextToVideoPipeline

STEPS = 8
LEAVES_OUT = ("first-block:10", "taylorseer:3", "magcache:9")
LEAVES_NOTHING_OUT = ("first-block:0", "taylorseer:1", "magcache:0")


@pytest.fixture
def pipe(make_native_components):
    defaults = {"height": 32, "width": 32, "num_frames": 9, "frame_rate": 8.0, "max_sequence_length": 24}
    pipe = TextToVideoPipeline(**make_native_components(num_layers=3), defaults=defaults)
    pipe.set_progress_bar_config(disable=True)
    pipe.magnitudes = measure_magnitudes(pipe, ["a"], num_inference_steps=STEPS, guidance_scale=3.0)
    return pipe


def _clip(pipe, seed=0, **settings):
    given = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "negative_prompt": "dark", **settings}
    generator = torch.Generator().manual_seed(seed)
    return pipe("a ball", generator=generator, output_type="latent", **given).frames


def _error(found, exact):
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def test_a_cache_that_leaves_nothing_out_is_exact_and_one_that_does_is_not(pipe):
    exact = _clip(pipe)
    for cache in LEAVES_NOTHING_OUT:
        assert torch.equal(_clip(pipe, step_cache=cache), exact), cache
    for cache in LEAVES_OUT:
        first = _clip(pipe, step_cache=cache)
        assert _error(first, exact) > 1e-4, cache
        _clip(pipe, seed=5, step_cache=cache)
        assert torch.equal(_clip(pipe, step_cache=cache), first), cache  # nothing is left of the call between
    assert torch.equal(_clip(pipe), exact) and not pipe.transformer.is_cache_enabled
    assert not any("forward" in vars(module) for module in pipe.transformer.modules())


@pytest.mark.parametrize("cache", LEAVES_OUT)
def test_fewer_blocks_run(pipe, cache):
    runs = []
    pipe.transformer.transformer_blocks[1].ff.register_forward_hook(lambda *_: runs.append(1))
    _clip(pipe, step_cache=cache)
    assert 1 <= len(runs) < STEPS


@pytest.mark.parametrize("cache", LEAVES_OUT)
def test_branches_one_by_one_keep_their_own_state(pipe, cache):
    """With a decision that depends on no number, both ways of running the branches leave out the same."""
    together = _clip(pipe, step_cache=cache)
    assert _error(_clip(pipe, step_cache=cache, guidance_batching="separate"), together) < 1e-4


def test_a_failed_call_takes_its_cache_with_it(pipe):
    def fail(*_):
        raise KeyError("on purpose")

    with pytest.raises(KeyError):
        _clip(pipe, step_cache="first-block:10", callback_on_step_end=fail)
    assert not pipe.transformer.is_cache_enabled


def test_known_tokens_go_with_a_cache(pipe):
    picture = torch.rand(1, 3, 32, 32)
    other = ImageToVideoPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)

    def clip(**settings):
        generator = torch.Generator().manual_seed(0)
        return other(
            image=picture, prompt="a", generator=generator, output_type="latent", num_inference_steps=STEPS,
            guidance_scale=3.0, **settings,
        ).frames  # fmt: skip

    exact = clip()
    assert torch.equal(clip(step_cache="taylorseer:1"), exact)
    assert _error(clip(step_cache="taylorseer:3"), exact) > 1e-4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"step_cache": "taylorseer", "guidance_interval": (0.9, 1)}, "comes and goes"),
        ({"step_cache": "magcache", "guidance_scale": [3.0] * 4 + [1.0] * 4}, "comes and goes"),
        (
            {"step_cache": "first-block", "stg_scale": 1.0, "stg_blocks": [0], "stg_mode": "transformer_block"},
            "first and the last block",
        ),
        ({"step_cache": "mag"}, "is not known"),
        ({"guidance_interval": (0.5, 1), "guidance_scale": [3.0] * STEPS}, "one guidance_scale"),
        ({"guidance_interval": (0.5, 1), "stg_scale": 1.0, "stg_blocks": [1]}, "contradict"),
    ],
)
def test_what_a_cache_cannot_do_is_refused(pipe, settings, said):
    with pytest.raises(RequestError, match=said):
        _clip(pipe, **settings)


def test_magcache_needs_its_numbers(pipe):
    pipe.magnitudes = None
    with pytest.raises(RequestError, match="measure_magnitudes"):
        _clip(pipe, step_cache="magcache")


def test_guidance_within_an_interval_is_a_list_by_step(pipe):
    _clip(pipe)
    sigmas = pipe.scheduler.sigmas[:-1].tolist()
    low, high = sigmas[5], sigmas[2]  # both ends belong to it
    by_step = [3.0 if 2 <= step <= 5 else 1.0 for step in range(STEPS)]
    assert torch.equal(_clip(pipe, guidance_interval=(low, high)), _clip(pipe, guidance_scale=by_step))
    assert torch.equal(_clip(pipe, guidance_interval=(0, 1)), _clip(pipe))


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.1), ("int8-weights", 0.05)])
def test_quantised_is_near_and_keeps_no_wide_weights(pipe, kind, most):
    exact, before = _clip(pipe), sum(p.numel() for p in pipe.transformer.transformer_blocks.parameters())
    names = quantize(pipe.transformer, kind)
    assert len(names) == 3 * (8 if kind == "int8" else 10) and "transformer_blocks.0.ff.net.2" in names
    error = _error(_clip(pipe), exact)
    assert 1e-4 < error < most
    assert sum(p.numel() for p in pipe.transformer.transformer_blocks.parameters()) < before / 3
    assert torch.equal(_clip(pipe), _clip(pipe))
    for call in (
        lambda: quantize(pipe.transformer, kind),
        lambda: pipe.transformer.state_dict(),
        lambda: pipe.load_lora_weights({}),
        lambda: pipe.unfuse_lora(),
    ):
        with pytest.raises(RequestError, match=r"quantised|already"):
            call()


def test_a_lora_must_be_fused_first(pipe):
    name = "transformer.transformer_blocks.0.attn1.to_q"
    pipe.load_lora_weights({f"{name}.lora_A.weight": torch.randn(2, 24), f"{name}.lora_B.weight": torch.randn(24, 2)})
    with pytest.raises(RequestError, match=r"fuse_lora\(\) first"):
        quantize(pipe.transformer, "int8")
    adapted = _clip(pipe)
    pipe.fuse_lora()
    quantize(pipe.transformer, "int8")
    assert _error(_clip(pipe), adapted) < 0.1


def test_fp8_is_refused_where_it_cannot_run(pipe):
    with pytest.raises(RequestError, match=r"8\.9"):
        quantize(pipe.transformer, "fp8")


@pytest.mark.parametrize(("make", "most"), [(Int8Linear, 0.02), (Int8WeightLinear, 0.01), (Fp8Linear, 0.06)])
def test_each_layer_is_near_the_one_it_stands_for(make, most):
    """Also with rows of very different sizes, which one scale for all would round away."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    with torch.no_grad():
        linear.weight.mul_(torch.logspace(-2, 2, 48)[:, None])
        inputs = torch.randn(3, 100, 64)
        layer = make(linear)
        found, exact = layer(inputs), linear(inputs)
    assert found.shape == exact.shape and found.dtype == exact.dtype
    errors = (found - exact).norm(dim=(0, 1)) / exact.norm(dim=(0, 1))
    bits = getattr(layer, "activation_bits", 8)
    assert 1e-5 < float(errors.max()) < most * 2 ** (8 - bits)


def test_rounding_to_a_row_is_off_by_half_a_step_at_most():
    weight = torch.randn(4, 9)
    narrow, scale = rowwise_int8(weight)
    assert narrow.dtype == torch.int8 and int(narrow.abs().max()) == 127
    assert bool(((narrow * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-6).all())


def test_one_block_is_too_few_for_a_cache(make_native_components):
    pipe = TextToVideoPipeline(**make_native_components(num_layers=1), defaults={"height": 32, "width": 32})
    assert isinstance(pipe.transformer, VideoDiT)
    with pytest.raises(RequestError, match="two blocks"):
        _clip(pipe, step_cache="first-block", num_frames=9, frame_rate=8.0, max_sequence_length=24)


def test_the_command_labels_what_it_makes(tmp_path, tiny_pipeline_folder, monkeypatch, run_cli):
    monkeypatch.setenv("VGEN_CACHE", str(tmp_path / "cache"))
    words = ["generate", "a ball", "--model", tiny_pipeline_folder, "--seed", 1, "--steps", 6]
    plain, lossy = tmp_path / "plain.gif", tmp_path / "lossy.gif"
    assert run_cli(*words, "-o", plain).code == 0
    assert "lossy" not in read_metadata(plain)
    refused = run_cli(*words, "--step-cache", "magcache", "-o", lossy)
    assert refused.code == 2 and "vgen bench calibrate" in refused.err
    assert run_cli("bench", "calibrate", "--model", tiny_pipeline_folder, "--prompt", "a").code == 0
    (kept,) = (tmp_path / "cache" / "magcache").iterdir()
    assert len(json.loads(kept.read_text())["ratios"]) == 3  # the model's own steps
    made = run_cli(*words, "--step-cache", "magcache:9", "--quantize", "int8", "-o", lossy)
    assert made.code == 0 and "Lossy" in made.out
    assert read_metadata(lossy)["lossy"] == ["quantize=int8", "step_cache=magcache:9"]
