"""Attention is measured, chosen and remembered; only exact backends are, and a bad file does no harm."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest
import torch

from vgen.engine.speed import autotune
from vgen.engine.speed.autotune import AttentionTuner, attention_key, chosen_combination, combination_key, fastest
from vgen.engine.speed.tuning_store import Measured, TuningStore, bucket
from vgen.models import VideoDiT
from vgen.models.transformer.attention import attention_chosen_by


def _shapes(tokens=10, text=6, mask=None, dtype=torch.float32):
    query, key = torch.zeros(2, tokens, 3, 8, dtype=dtype), torch.zeros(2, text, 3, 8, dtype=dtype)
    return query, key, key, mask


class Clock:
    """Stands in for the time that a backend takes."""

    def __init__(self, monkeypatch, **seconds):
        self.asked = []
        real = autotune._work

        def work(name, numbers, mask):
            self.asked.append(name)
            self.now = seconds.get(name, 1.0)
            return real(name, numbers, mask)

        monkeypatch.setattr(autotune, "_work", work)
        monkeypatch.setattr(autotune, "_fastest_run", lambda *_: self.now)


def test_the_quickest_is_remembered_by_a_later_process(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, native=2.0, _native_math=1.0)
    file = tmp_path / "new" / "autotune.json"
    assert AttentionTuner(TuningStore(file), measures=True)(*_shapes()) == "_native_math"
    assert clock.asked == ["native", "_native_math"]
    later = AttentionTuner(TuningStore(file))
    assert later(*_shapes()) == "_native_math"
    assert later(*_shapes(tokens=11)) == "_native_math"  # of the same bucket
    assert later(*_shapes(tokens=100)) is None
    assert len(clock.asked) == 2
    (known,) = json.loads(file.read_text())["entries"].values()
    assert known == {"choice": "_native_math", "seconds": {"native": 2.0, "_native_math": 1.0}}
    assert [path.name for path in file.parent.iterdir()] == ["autotune.json"]


def test_what_is_hardly_quicker_does_not_replace_the_default():
    assert fastest({"native": 1.0, "other": 0.97}) == "native"
    assert fastest({"native": 1.0, "other": 0.9, "third": 0.8}) == "third"
    assert fastest({"other": 1.0}) == "other"


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_a_backend_that_ignores_a_mask_is_left_out(monkeypatch, kind):
    mask = torch.ones(2, 6, dtype=torch.bool) if kind == "bool" else torch.zeros(2, 1, 1, 6)
    Clock(monkeypatch, native=2.0, _native_math=1.0)
    measured = autotune.measure_attention(*_shapes()[:2], mask)
    assert measured == Measured("_native_math", {"native": 2.0, "_native_math": 1.0})
    real = autotune._work
    monkeypatch.setattr(autotune, "_work", lambda name, n, m: real(name, n, m if name == "native" else None))
    assert autotune.measure_attention(*_shapes()[:2], mask) == Measured("native", {"native": 2.0})


def test_a_backend_that_cannot_do_a_shape_drops_out(monkeypatch):
    monkeypatch.setitem(autotune.CANDIDATES, "cpu", ("native", "_native_cudnn", "xformers", "_flash_3"))
    measured = autotune.measure_attention(*_shapes()[:2], None)
    assert list(measured.seconds) == ["native"]


def test_nothing_is_measured_unasked(monkeypatch):
    clock = Clock(monkeypatch, _native_math=0.1)
    assert AttentionTuner(TuningStore(None))(*_shapes()) is None
    assert clock.asked == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'{"schema": 99, "entries": {}}',
        b'{"schema": 1, "entries": []}',
        b'{"schema": 1, "entries": {"KEY": 3}}',
        b'{"schema": 1, "entries": {"KEY": {"choice": ["native"], "seconds": {}}}}',
        b'{"schema": 1, "entries": {"KEY": {"choice": "native", "seconds": {"native": NaN}}}}',
        b'{"schema": 1, "entries": {"KEY": {"choice": "native", "seconds": {"native": "1"}}}}',
        b'{"schema": 1, "entries": {"KEY": {"choice": "sage", "seconds": {"sage": 0.1}}}}',
    ],
)
def test_a_damaged_file_is_ignored_and_written_anew(monkeypatch, tmp_path, content):
    Clock(monkeypatch, native=2.0, _native_math=1.0)
    file = tmp_path / "autotune.json"
    file.write_bytes(content.replace(b"KEY", attention_key(*_shapes()[:2], None).encode()))
    assert AttentionTuner(TuningStore(file))(*_shapes()) is None
    assert AttentionTuner(TuningStore(file), measures=True)(*_shapes()) == "_native_math"
    assert AttentionTuner(TuningStore(file))(*_shapes()) == "_native_math"


@pytest.mark.parametrize("place", ["a file in the way", "a folder of that name"])
def test_where_nothing_can_be_written_memory_has_to_do(tmp_path, place):
    file = tmp_path / "in the way" / "autotune.json"
    if place == "a file in the way":
        file.parent.write_text("")
    else:
        file.mkdir(parents=True)
        (file / "full").write_text("")
    store = TuningStore(file)
    store.put("one", Measured("native", {"native": 1.0}))
    assert store.get("one") == Measured("native", {"native": 1.0})
    assert TuningStore(file).get("one") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    store = TuningStore(tmp_path / "autotune.json")
    store.put("one", Measured("native", {"native": 1.0}))
    assert store.get("one") is not None
    tmp_path.chmod(0o700)


def test_two_processes_keep_each_others_results(tmp_path):
    first, second = (TuningStore(tmp_path / "autotune.json") for _ in range(2))
    assert first.get("b") is None
    second.put("b", Measured("x", {"x": 1.0}))
    first.put("a", Measured("y", {"y": 2.0}))
    assert {key: asdict(TuningStore(first.path).get(key)) for key in "ab"} == {
        "a": {"choice": "y", "seconds": {"y": 2.0}},
        "b": {"choice": "x", "seconds": {"x": 1.0}},
    }


def test_sizes_share_a_choice_within_a_half_octave():
    assert [bucket(count) for count in (1, 2, 3, 4, 5, 6, 7, 9, 97, 128, 129, 6144, 6145)] == [
        1, 2, 3, 4, 6, 6, 8, 12, 128, 128, 192, 6144, 8192
    ]  # fmt: skip


def _dit():
    torch.manual_seed(0)
    return VideoDiT(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=6,
    ).eval()


@torch.no_grad()
def test_a_model_asks_and_gets_what_it_would_get():
    dit = _dit()
    torch.nn.init.normal_(dit.proj_out.weight)
    call = {
        "hidden_states": torch.randn(2, 8, 4),
        "encoder_hidden_states": torch.randn(2, 6, 6),
        "timestep": torch.tensor([3.0, 500.0]),
        "encoder_attention_mask": torch.arange(6)[None] < torch.tensor([[6], [2]]),
        "video_coords": torch.rand(1, 3, 8),
        "return_dict": False,
    }
    plain, asked = dit(**call)[0], []

    def chooser(query, key, value, mask):
        asked.append((tuple(query.shape), tuple(key.shape), None if mask is None else tuple(mask.shape)))
        return "_native_math"

    with attention_chosen_by(chooser):
        torch.testing.assert_close(dit(**call)[0], plain, atol=1e-5, rtol=0)
    assert asked == [((2, 8, 2, 12), (2, 8, 2, 12), None), ((2, 8, 2, 12), (2, 6, 2, 12), (2, 6))] * 2
    asked.clear()
    dit.set_attention_backend("native")  # said by the caller
    with attention_chosen_by(chooser):
        dit(**call)
    dit(**call)
    assert asked == []


def test_a_backend_that_the_caller_set_for_all_stays(monkeypatch):
    from diffusers.models.attention_dispatch import attention_backend

    Clock(monkeypatch, native=2.0, _native_math=1.0)
    with attention_backend("_native_math"):
        assert AttentionTuner(TuningStore(None), measures=True)(*_shapes()) is None


def test_the_combination_of_a_shape():
    dit, store = _dit(), TuningStore(None)
    assert chosen_combination(dit, 2, 6000, store) == "eager"
    store.put(combination_key(dit, 2, 6144), Measured("compiled", {"eager": 2.0, "compiled": 1.0}))
    assert chosen_combination(dit, 2, 6000, store) == "compiled"
    assert chosen_combination(dit, 1, 6000, store) == "eager"
    assert chosen_combination(dit, 2, 7000, store) == "eager"
