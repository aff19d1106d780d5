"""What is in force while a pipeline works: choices that were remembered, and nothing that would be missed."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from vgen.engine import session
from vgen.engine.memory.offload import offload_blocks
from vgen.engine.session import denoising, inference_session
from vgen.engine.speed.autotune import combination_key
from vgen.engine.speed.compile import is_compiled
from vgen.engine.speed.tuning_store import Measured, shared_store
from vgen.errors import RequestError
from vgen.models.transformer.attention import VideoAttentionProcessor
from vgen.ops import switches
from vgen.pipelines import TextToVideoPipeline

CALL = {"prompt": "a", "height": 32, "width": 32, "num_frames": 9, "frame_rate": 8.0, "guidance_scale": 2.0}


@pytest.fixture
def pipeline(make_native_components, monkeypatch, tmp_path):
    monkeypatch.setenv("VGEN_CACHE", str(tmp_path))
    shared_store.cache_clear()
    made = TextToVideoPipeline(**make_native_components())
    made.set_progress_bar_config(disable=True)
    yield made
    shared_store.cache_clear()


def _generate(pipeline, **changes):
    return pipeline(
        **{**CALL, **changes},
        num_inference_steps=2,
        max_sequence_length=8,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).frames


def test_generation_follows_what_was_remembered(pipeline, monkeypatch, tmp_path):
    plain, used = _generate(pipeline), []
    real = VideoAttentionProcessor._attend

    def met(self, attention, query, key, value, mask):
        with torch.profiler.profile() as profile:
            result = real(self, attention, query, key, value, mask)
        used.append(any("_attention_math" in event.key for event in profile.key_averages()))
        return result

    store = shared_store()
    monkeypatch.setattr(store, "get", lambda key: Measured("_native_math", {"_native_math": 1.0}))
    monkeypatch.setattr(VideoAttentionProcessor, "_attend", met)
    torch.testing.assert_close(_generate(pipeline), plain, atol=1e-5, rtol=0)
    assert used and all(used)
    used.clear()
    with switches.without("autotune"):
        assert torch.equal(_generate(pipeline), plain)
    assert used and not any(used)
    assert not (tmp_path / "autotune.json").exists()  # nothing is measured in passing


def test_a_damaged_memory_does_no_harm(pipeline, tmp_path):
    plain = _generate(pipeline)
    (tmp_path / "autotune.json").write_text(json.dumps({"schema": 1, "entries": {"x": None}})[:-3])
    shared_store.cache_clear()
    assert torch.equal(_generate(pipeline), plain)


def test_blocks_are_compiled_only_where_that_was_faster(pipeline, monkeypatch):
    monkeypatch.setattr(session, "compile_blocks", lambda dit: dit.compile_repeated_blocks(backend="eager"))
    dit = pipeline.transformer
    shared_store().put(combination_key(dit, 2, 192), Measured("compiled", {"eager": 2.0, "compiled": 1.0}))
    session._follow_choice(dit, session.chosen_combination(dit, 2, 192))
    assert is_compiled(dit)
    session._follow_choice(dit, session.chosen_combination(dit, 2, 10))
    assert not is_compiled(dit)
    session.compile_blocks(dit)  # by the caller
    session._follow_choice(dit, "eager")
    assert is_compiled(dit)


@pytest.mark.parametrize("callback", [None, lambda pipe, index, timestep, tensors: {}])
def test_blocks_are_recorded_only_while_nobody_can_interfere(pipeline, monkeypatch, callback):
    recorded = []

    def stand_in(path, tokens):
        recorded.append(tokens)
        return session.ExitStack()

    monkeypatch.setattr(session, "blocks_recorded", stand_in)
    _generate(pipeline, callback_on_step_end=callback)
    tokens = 3 * 4 * 4
    assert recorded == ([2 * tokens] if callback is None else [])
    recorded.clear()
    with switches.without("cuda_graph"):
        _generate(pipeline)
    assert recorded == []


@pytest.mark.parametrize("offloaded", [False, True])
def test_a_callback_may_write_weights(pipeline, offloaded):
    """Through `data`, which torch does not count: every step after it uses the new ones."""

    def double(pipe, index, timestep, tensors):
        for name in ("caption_projection.linear_1", "transformer_blocks.0.attn2.to_v", "time_embed.linear"):
            weight = pipe.transformer.get_submodule(name).weight
            weight.data.copy_(weight * 2)

    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    plain = _generate(pipeline)
    with switches.without("hoisting"):
        expected = _generate(pipeline, callback_on_step_end=double)
    pipeline.transformer.load_state_dict(before)
    if offloaded:
        offload_blocks(pipeline.transformer, pipeline.transformer.transformer_blocks, "cpu", prefetch=True)
    torch.testing.assert_close(_generate(pipeline, callback_on_step_end=double), expected, atol=1e-5, rtol=0)
    assert (expected - plain).abs().max() > 1e-3
    assert pipeline.transformer.fast_path is None


def _with_lora(pipe):
    """Two adapters of which the first counts, in layers that a loop keeps results of and in others."""
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        layers = ["attn1.to_q", "attn2.to_k", "attn2.to_v", "time_embed.linear"]
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False), name)
    pipe.transformer.set_adapter("a")


def _merge(pipe):
    for module in pipe.transformer.modules():
        if isinstance(module, LoraLayer):
            module.merge()


def _write_data(pipe):
    for parameter in pipe.transformer.parameters():
        parameter.data.copy_(parameter * 1.1)


WAYS = {
    "peft's merge": _merge,
    "fuse_lora": lambda pipe: pipe.fuse_lora(),
    "fuse and unload": lambda pipe: (pipe.fuse_lora(), pipe.unload_lora_weights()),
    "fuse, unfuse": lambda pipe: (pipe.fuse_lora(), pipe.unfuse_lora()),
    "set_adapters": lambda pipe: pipe.set_adapters(["a", "b"], [0.5, -1.0]),
    "delete_adapters": lambda pipe: pipe.delete_adapters("a"),
    "disable_lora": lambda pipe: pipe.disable_lora(),
    "writing data": _write_data,
    "load_state_dict": lambda pipe: pipe.transformer.load_state_dict(
        {name: value * 1.1 for name, value in pipe.transformer.state_dict().items()}
    ),
    "to": lambda pipe: pipe.transformer.to(torch.bfloat16).to(torch.float32),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["between calls", "in a callback"])
def test_every_way_to_change_weights_is_seen(pipeline, make_native_components, way, when):
    """Against the same on a model of its own, without what a loop keeps or moves."""
    plain = type(pipeline)(**make_native_components())
    plain.set_progress_bar_config(disable=True)
    found = []
    for pipe, off in ((plain, ["hoisting", "fused_qkv"]), (pipeline, [])):
        _with_lora(pipe)

        def change(*given, pipe=pipe):
            if not given or given[1] == 0:  # between calls, or after the first step
                WAYS[way](pipe)
            return {}

        with switches.without(*off):
            first = _generate(pipe)
            if when == "between calls":
                change()
            found.append(_generate(pipe, callback_on_step_end=change if when == "in a callback" else None))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    same = way in ("fuse, unfuse", "peft's merge", "fuse_lora", "fuse and unload")
    assert (found[1] - first).abs().max() < 1e-4 if same else (found[1] - first).abs().max() > 1e-4


def test_a_callback_cannot_call_its_own_pipeline(pipeline):
    other = type(pipeline)(**pipeline.components)
    other.set_progress_bar_config(disable=True)
    plain = _generate(pipeline)
    for called in (pipeline, other):
        with pytest.raises(RequestError, match="from the callback of a call that uses the same transformer"):
            _generate(pipeline, callback_on_step_end=lambda *_, called=called: _generate(called) and {})
    assert torch.equal(_generate(pipeline), plain)  # nothing is left behind


def test_two_threads_cannot_share_a_transformer(pipeline):
    raised = []

    def from_elsewhere(*_):
        def call():
            try:
                _generate(pipeline)
            except RequestError as error:
                raised.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return {}

    plain = _generate(pipeline)
    assert torch.equal(_generate(pipeline, callback_on_step_end=from_elsewhere), plain)
    assert len(raised) == 2 and all("at work in another thread" in text for text in raised)
    assert torch.equal(_generate(pipeline), plain)


def test_two_threads_with_a_model_each_do_not_disturb_each_other(pipeline, make_native_components):
    other = TextToVideoPipeline(**make_native_components())
    other.set_progress_bar_config(disable=True)
    pipelines, found = (pipeline, other), {}
    expected = [_generate(one, prompt="a" * index, height=32 + 8 * index) for index, one in enumerate(pipelines, 1)]
    meet = threading.Barrier(2, timeout=60)

    def wait(*_):  # both are within their loops at every step
        meet.wait()
        return {}

    def call(index):
        found[index] = _generate(
            pipelines[index - 1], prompt="a" * index, height=32 + 8 * index, callback_on_step_end=wait
        )

    threads = [threading.Thread(target=call, args=(index,)) for index in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[1], expected[0]) and torch.equal(found[2], expected[1])


def test_after_an_error_nothing_is_left(pipeline):
    dit = pipeline.transformer
    loop = denoising(dit, torch.tensor([1.0]), 2, 8, closed=True)
    with pytest.raises(ValueError, match="stop"), inference_session(pipeline), loop:
        path = dit.fast_path
        assert path._expected is not None and path.weights_fixed
        raise ValueError("stop")
    assert path._expected is None and not path.weights_fixed and dit.fast_path is None
