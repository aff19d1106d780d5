"""Recording the blocks: when it is done, and that the recorded inputs are those of each call.

On a CPU a stand-in records: it does the work again on the recorded inputs, and puts the result where the first one was,
as a CUDA graph does. What CUDA itself does is tested where there is a GPU.
"""

from __future__ import annotations

import pytest
import torch

from vgen.engine.speed import cuda_graph
from vgen.engine.speed.cuda_graph import blocks_recorded, recordable
from vgen.engine.speed.fast_path import fast_path
from vgen.models import VideoDiT
from vgen.models.transformer.attention import VideoAttentionProcessor


class Recorder:
    """Stands in for CUDA's graphs."""

    def __init__(self):
        self.recorded = self.played = 0

    def __call__(self, work):
        self.recorded += 1
        result = work().clone().fill_(float("nan"))  # a capture computes nothing

        def play():
            self.played += 1
            result.copy_(work())

        return play, result


@pytest.fixture
def dit(monkeypatch):
    monkeypatch.setattr(cuda_graph, "_DEVICE", "cpu")
    torch.manual_seed(0)
    made = VideoDiT(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=6,
    ).eval()
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def _calls(by_token=False, lengths=(6, 2)):
    """A loop: other latents at every step, text and positions the same."""
    noise = torch.Generator().manual_seed(1)
    shared = {
        "encoder_hidden_states": torch.randn(2, 6, 6, generator=noise),
        "encoder_attention_mask": torch.arange(6)[None] < torch.tensor(lengths)[:, None],
        "video_coords": torch.rand(1, 3, 8, generator=noise),
        "return_dict": False,
    }
    for value in (900.0, 500.0, 300.0, 10.0):
        step = torch.minimum(torch.tensor(value), torch.linspace(0, 1000, 8)).expand(2, 8)
        step = step if by_token else torch.full((2,), value)
        yield {"hidden_states": torch.randn(2, 8, 4, generator=noise), "timestep": step, **shared}


@torch.no_grad()
@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("lengths", [(6, 2), (3, 3)])
@pytest.mark.parametrize("hoisted", [False, True])
def test_a_recorded_loop_gives_what_a_plain_one_gives(dit, by_token, lengths, hoisted):
    calls, recorder = list(_calls(by_token, lengths)), Recorder()
    expected = [dit(**call)[0] for call in calls]
    with fast_path(dit, hoisted) as path, blocks_recorded(path, 16, recorder):
        path.expect_timesteps(torch.cat([call["timestep"].flatten() for call in calls]).unique())
        found = [dit(**call)[0] for call in calls]
    assert (recorder.recorded, recorder.played) == (1, 3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert path.recorder is None


@torch.no_grad()
def test_inputs_changed_in_place_and_other_shapes_are_seen(dit):
    call, recorder = next(_calls()), Recorder()
    with fast_path(dit) as path, blocks_recorded(path, 16, recorder):
        for _ in range(3):
            before = dit(**call)[0]
        call["encoder_hidden_states"].mul_(-1)
        call["video_coords"].mul_(0.5)
        after = dit(**call)[0]
        one = {name: value[:1] if torch.is_tensor(value) else value for name, value in call.items()}
        alone = [dit(**one)[0] for _ in range(3)]
    assert (recorder.recorded, recorder.played) == (2, 5)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, dit(**call)[0], atol=1e-5, rtol=0)
    for found in alone:
        torch.testing.assert_close(found, after[:1], atol=1e-5, rtol=0)


def test_only_what_changed_is_copied():
    copies = []

    class Target(torch.Tensor):
        def copy_(self, source):
            copies.append(float(source.flatten()[0]))
            return super().copy_(source)

    targets = [torch.zeros(2).as_subclass(Target) for _ in range(2)]
    recording = cuda_graph._Recording(targets, lambda: None, torch.zeros(1))
    fixed, moving = torch.full((2,), 7.0), torch.full((2,), 1.0)
    recording.run([fixed, moving])
    recording.run([fixed, moving])
    moving.fill_(2.0)
    recording.run([fixed, moving])
    recording.run([torch.full((2,), 8.0), moving])
    with torch.inference_mode():  # no counter of changes there
        uncounted = torch.full((2,), 9.0)
    recording.run([uncounted, moving])
    recording.run([uncounted, moving])
    assert copies == [7.0, 1.0, 2.0, 8.0, 9.0, 9.0]


@torch.no_grad()
def test_where_recording_fails_the_blocks_run_as_they_are(dit, caplog):
    def broken(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    calls = list(_calls())
    expected = [dit(**call)[0] for call in calls]
    with fast_path(dit, hoists=False) as path, blocks_recorded(path, 16, broken):
        found = [dit(**call)[0] for call in calls]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert caplog.text.count("could not be recorded") == 1


def test_when_blocks_are_recorded(dit):
    assert recordable(dit, cuda_graph.LARGEST)
    assert not recordable(dit, cuda_graph.LARGEST + 1)
    with fast_path(dit) as path, blocks_recorded(path, 16, Recorder()):
        recorder = path.recorder
        with blocks_recorded(path, 16, Recorder()):
            assert path.recorder is recorder
        assert path.recorder is recorder


def test_on_a_cpu_nothing_is_recorded(dit, monkeypatch):
    monkeypatch.undo()
    assert not recordable(dit, 16)
    with fast_path(dit) as path, blocks_recorded(path, 16, Recorder()):
        assert path.recorder is None


def _hook(dit):
    dit.transformer_blocks[1].ff.register_forward_pre_hook(lambda *_: None)


def _offload(dit):
    module = dit.transformer_blocks[0]
    module.forward = module.forward


def _compile(dit):
    dit.transformer_blocks[1].compile(backend="eager")


def _processor(dit):
    dit.transformer_blocks[0].attn1.processor = type("Own", (VideoAttentionProcessor,), {})()


def _spread(dit):
    dit.transformer_blocks[0].attn1.processor._parallel_config = object()


def _elsewhere(dit):
    dit.transformer_blocks[1].to("meta")


def _cache(dit):
    from diffusers import FirstBlockCacheConfig

    dit.enable_cache(FirstBlockCacheConfig(threshold=0.1))


@pytest.mark.parametrize("change", [_hook, _offload, _compile, _processor, _spread, _elsewhere, _cache])
def test_what_a_recording_would_miss_rules_it_out(dit, change):
    change(dit)
    assert not recordable(dit, 16)


@torch.no_grad()
def test_perturbed_blocks_are_not_recorded(dit):
    from vgen.types import SkipLayers

    recorder, call = Recorder(), next(_calls())
    skip = SkipLayers(blocks=(0,), mode="attention_values")
    expected = dit(**call, skip_layers=skip)[0]
    with fast_path(dit) as path, blocks_recorded(path, 16, recorder):
        for _ in range(3):
            torch.testing.assert_close(dit(**call, skip_layers=skip)[0], expected, atol=1e-5, rtol=0)
    assert recorder.recorded == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_a_cuda_graph_gives_what_plain_calls_give(dit, monkeypatch):
    monkeypatch.setattr(cuda_graph, "_DEVICE", "cuda")
    dit.cuda()
    calls = [
        {name: value.cuda() if torch.is_tensor(value) else value for name, value in call.items()} for call in _calls()
    ]
    expected = [dit(**call)[0] for call in calls]
    with fast_path(dit) as path, blocks_recorded(path, 16):
        path.expect_timesteps(torch.cat([call["timestep"] for call in calls]).unique())
        for call, plain in zip(calls, expected, strict=True):
            torch.testing.assert_close(dit(**call)[0], plain, atol=1e-5, rtol=0)
        assert len(path.recorder._recordings) == 1
