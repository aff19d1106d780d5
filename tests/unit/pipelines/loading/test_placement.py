"""Memory is told beforehand, a budget is kept, and where models lie changes no clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vgen.bench.arms import make_arms
from vgen.bench.build import build
from vgen.bench.peer_memory import peer_decoding_peak, peer_denoising_peak
from vgen.bench.scenarios import ARCHITECTURES, Scenario
from vgen.engine.lossy.quantize import quantize, quantize_text_encoder
from vgen.engine.memory.coding import WORKSPACE, CodingPlan
from vgen.engine.memory.offload import offload_of, weight_bytes
from vgen.engine.memory.plan import PLACES, MemoryPlan, Sizes, choose_plan
from vgen.engine.memory.rehearsal import LiveBytes
from vgen.engine.memory.steps import Work, denoising_peak
from vgen.errors import OutOfMemoryError, RequestError
from vgen.pipelines import TextToVideoPipeline
from vgen.pipelines.loading.placement import encode_first, place_models, plan_call, sizes_of, sizes_of_configs
from vgen.pipelines.text.cache import DeferredText, TextCache
from vgen.request.request import GenerateRequest
from vgen.types import VideoShape

BUDGETS = [10**5 * size for size in (10, 30, 50, 80, 100, 120, 150, 180, 220, 250, 280, 400, 9000)]


def _scenario(config: str, size: tuple[int, int, int], guidance: float = 3.0) -> Scenario:
    return Scenario("test", config, *size, 2, guidance, text_tokens=32)


def _pipeline(scenario: Scenario) -> TextToVideoPipeline:
    made = build(scenario, torch.device("cpu"))
    parts = (made.scheduler, made.vae, made.text_encoder, made.tokenizer, made.transformer)
    pipe = TextToVideoPipeline(*parts, convention="ltx")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sizes(config: str) -> Sizes:
    architecture = ARCHITECTURES[config]
    text = {**(architecture.text or {}), "feed_forward_proj": "relu"}
    return sizes_of_configs(architecture.transformer, architecture.vae, torch.float32, text, keep_text=True)


def _work(sizes: Sizes, scenario: Scenario) -> Work:
    return Work(scenario.shape.latent(sizes.vae.strides), 2 if scenario.guidance_scale > 1 else 1, text_tokens=32)


def _call(pipe: TextToVideoPipeline, scenario: Scenario) -> torch.Tensor:
    return pipe(
        prompt="a red ball",
        height=scenario.height,
        width=scenario.width,
        num_frames=scenario.num_frames,
        num_inference_steps=2,
        guidance_scale=scenario.guidance_scale,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames


@pytest.mark.parametrize(
    ("config", "size", "guidance"),
    [
        ("tiny", (64, 96, 17), 3.0),
        ("tiny", (128, 64, 41), 1.0),
        ("ltx-50m", (96, 64, 17), 3.0),
        ("ltx-50m", (128, 192, 33), 1.0),
        ("ltx-50m-095", (128, 160, 25), 3.0),
    ],
)
def test_what_is_told_is_what_is_taken(config: str, size: tuple[int, int, int], guidance: float) -> None:
    scenario = _scenario(config, size, guidance)
    sizes, pipe = _sizes(config), _pipeline(scenario)
    plan = choose_plan(sizes, _work(sizes, scenario), 10**12, device="cpu", base=0)
    models = [pipe.transformer, pipe.vae, pipe.text_encoder]
    _call(pipe, scenario)  # the first call moves weights to be neighbours
    held = sum(weight_bytes(model) for model in models)
    with torch.no_grad(), LiveBytes() as live:
        live.overlook(*models)
        _call(pipe, scenario)
    # What convolution libraries take beside tensors is no tensor: it comes on top of what is counted here.
    stages = {**plan.stages, "decode": held + plan.decoding.peak_bytes / WORKSPACE}
    assert max(stages.values()) == pytest.approx(held + live.peak, rel=0.2)
    assert max(stages.values()) - held == pytest.approx(live.peak, rel=0.2)  # above the weights alone, too


def test_a_few_blocks_tell_what_all_of_them_take() -> None:
    sizes = _sizes("ltx-50m")
    work = Work(VideoShape(9, 64, 96).latent(sizes.vae.strides), 2, text_tokens=32)
    transformer = sizes.transformer
    for together in (True, False):
        told = denoising_peak(transformer, work, together=together)
        assert len(transformer.transformer_blocks) == 8
        transformer.transformer_blocks[7].ff.extra = torch.nn.Linear(2, 2)  # no longer equal: all of them are run
        assert denoising_peak(transformer, work, together=together) == told
        del transformer.transformer_blocks[7].ff.extra


def test_prompts_are_encoded_before_the_models_move(tiny_pipeline_folder: Path) -> None:
    pipe = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder, text_cache=TextCache(None))
    assert pipe.deferred_text is not None
    for way, expected in (("blocks", "blocks"), (None, "blocks"), ("kept", "dropped")):
        encode_first(pipe, "cpu", ["a red circle", f"something new, {way}"], "", way)
        assert pipe.deferred_text.way == expected
        assert pipe.placement is None
    assert pipe.deferred_text.loads == 3
    pipe.set_progress_bar_config(disable=True)
    pipe(prompt="a red circle", negative_prompt="", num_inference_steps=1)
    assert pipe.deferred_text.loads == 3  # found again


def test_the_peer_is_told_as_it_is_measured() -> None:
    scenario = _scenario("ltx-50m", (128, 192, 33))
    arms = make_arms(scenario, ("diffusers",), torch.device("cpu"), 0)
    sizes = _sizes("ltx-50m")
    work, theirs = _work(sizes, scenario), arms[1].pipeline
    for stage, told, model in (
        ("denoise", peer_denoising_peak, theirs.transformer), ("decode", peer_decoding_peak, theirs.vae)
    ):  # fmt: skip
        work_of = arms[1].stage(stage)
        assert work_of is not None
        with LiveBytes() as live:
            live.overlook(theirs.transformer, theirs.vae)
            work_of()
        assert told(model.to("meta"), work) == pytest.approx(live.peak, rel=0.2)


def test_a_smaller_budget_never_plans_more() -> None:
    scenario = _scenario("tiny", (128, 192, 33))
    sizes = _sizes("tiny")
    work = _work(sizes, scenario)
    found: list[MemoryPlan] = []
    for budget in BUDGETS:
        try:
            found.append(choose_plan(sizes, work, budget, device="cuda", base=0))
        except OutOfMemoryError as error:
            assert not found
            assert error.least > budget
            continue
        assert found[-1].peak <= budget
    peaks = [plan.peak for plan in found]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) > 1
    exact = [plan.exact for plan in found]
    assert exact == sorted(exact)  # blended tiles come last


def test_every_place_is_chosen_by_some_budget() -> None:
    sizes = _sizes("ltx-50m")
    work = Work(VideoShape(9, 64, 64).latent(sizes.vae.strides), 2, text_tokens=32)
    peaks, budget, chosen = [], 10**12, set()
    while True:
        try:
            plan = choose_plan(sizes, work, budget, device="cuda", base=0)
        except OutOfMemoryError:
            break
        chosen.add(plan.places)
        peaks.append(plan.peak)
        budget = plan.peak - 1
    assert chosen == set(PLACES)
    assert peaks == sorted(peaks, reverse=True)


def _by(places: str, room: int) -> MemoryPlan:
    whole = CodingPlan(None, None, 0)
    return MemoryPlan(places, "kept", "separate", whole, None, room, {"denoise": 0}, 0, 10**9)


@pytest.mark.parametrize(("places", "kind"), [*((places, None) for places in PLACES), ("blocks", "int8-weights")])
def test_where_models_lie_changes_no_clip(places: str, kind: str | None) -> None:
    scenario = _scenario("tiny", (64, 96, 17))
    pipe = _pipeline(scenario)
    if kind is not None:
        quantize(pipe.transformer, kind)
    expected = _call(pipe, scenario)
    place_models(pipe, _by(places, 10**9), "cpu")
    assert (offload_of(pipe.transformer) is not None) == (places == "blocks")
    for _ in range(2):
        made = _call(pipe, scenario)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert pipe.fill_settings({"prompt": "a", "height": 64, "width": 96, "num_frames": 17}).vae_memory == 10**9


def test_how_texts_are_encoded_changes_no_embedding(tiny_pipeline_folder: Path) -> None:
    found = {}
    for way in ("dropped", "blocks", "host"):
        deferred = DeferredText(tiny_pipeline_folder, torch.float32, TextCache(None))
        deferred.way, deferred.texts_at_once = way, 2
        texts = ["a red circle", "two blue squares", ""]
        found[way] = deferred.encode(texts, 16, masked=False, device="cpu")
        assert deferred.loads == 1
    for way in ("blocks", "host"):
        for made, expected in zip(found[way], found["dropped"], strict=True):
            assert torch.equal(made, expected)


def test_a_transformer_with_weights_in_8_bits_is_planned_as_it_is() -> None:
    architecture = ARCHITECTURES["tiny"]
    narrow = sizes_of_configs(architecture.transformer, architecture.vae, torch.float32, quantize="int8-weights")
    made = build(_scenario("tiny", (64, 96, 17)), torch.device("cpu")).transformer
    plain = weight_bytes(made)
    quantize(made, "int8-weights")
    assert weight_bytes(narrow.transformer) == weight_bytes(made) < plain


def test_a_text_encoder_in_8_bits_is_planned_as_it_is(tiny_pipeline_folder: Path) -> None:
    plain = sizes_of(tiny_pipeline_folder, torch.bfloat16)
    narrow = sizes_of(tiny_pipeline_folder, torch.bfloat16, quantize_text="int8-weights")
    assert plain.text is not None and narrow.text is not None
    loaded = DeferredText(tiny_pipeline_folder, torch.bfloat16, TextCache(None)).load()[0]
    quantize_text_encoder(loaded, "int8-weights")
    assert weight_bytes(narrow.text) == weight_bytes(loaded) < weight_bytes(plain.text)


def test_memory_and_vae_memory_contradict_each_other() -> None:
    with pytest.raises(RequestError, match="memory and vae_memory cannot be given together"):
        GenerateRequest.create(prompt="a", memory="8GB", vae_memory="1GB")
    assert GenerateRequest.create(prompt="a", memory="8GB").memory == 8 * 10**9


def test_what_fits_in_no_way_is_refused_with_a_remedy() -> None:
    sizes = _sizes("tiny")
    work = Work(VideoShape(49, 256, 256).latent(sizes.vae.strides), 2, text_tokens=32)
    with pytest.raises(OutOfMemoryError, match=r"memory=1\.0 kB is too little: .* Smaller sizes do not") as found:
        plan_call(sizes, work, 1000, "cuda", base=0)
    least = found.value.least
    with pytest.raises(OutOfMemoryError, match=r"\d+ x \d+ x \d+ frames would take [\d.]+ MB"):
        plan_call(sizes, work, least - 1, "cuda", base=0)
    assert plan_call(sizes, work, least, "cuda", base=0).peak == least
    with pytest.raises(RequestError, match="device='mps' cannot be planned for"):
        plan_call(sizes, work, 10**9, "mps")


def test_ltx_fits_8_gb_by_its_configuration_alone() -> None:
    """With T5-XXL in bfloat16, 768 x 512 x 121 frames, with guidance: nothing of that size is allocated."""
    text: dict[str, Any] = {
        "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
    architecture = ARCHITECTURES["ltx-2b"]
    sizes = sizes_of_configs(architecture.transformer, architecture.vae, torch.bfloat16, text)
    plan = plan_call(sizes, Work(VideoShape(121, 512, 768).latent(sizes.vae.strides), 2), 8 * 10**9, "cuda")
    assert weight_bytes(sizes.text) > 9e9
    assert plan.exact
    assert plan.peak <= 8 * 10**9
    assert (plan.places, plan.text) == ("in turn", "blocks")
    assert "8.00 GB" in plan.lines()[0]
