"""Captions, their tokens, and what a dropped one becomes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vgen.models import CausalVideoVAE
from vgen.pipelines.text.encoder import encode_texts
from vgen.training.config.data import LatentCacheConfig, SpritesConfig
from vgen.training.config.stages import ShiftConfig
from vgen.training.control import Control, StopRequested
from vgen.training.data import latents as module
from vgen.training.data.captioned import CaptionedLatents, tokenize
from vgen.training.data.clips import SpriteClips, to_frames, to_pixels
from vgen.training.data.latents import LatentCache, encode_clips, encoder_hash
from vgen.training.data.plan import Draw
from vgen.training.data.sprites.captions import vocabulary_corpus
from vgen.training.data.tokenizer import train_tokenizer
from vgen.training.objectives.flow.build import build_scheduler
from vgen.training.objectives.flow.config import FlowObjectiveConfig
from vgen.training.objectives.flow.text_encoder import build_text_encoder
from vgen.training.randomness import Keys

DATA = SpritesConfig(tier=1, height=16, width=16)
PROMPT = "a small red circle slowly moves to the left on a black background"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(vocabulary_corpus(400), vocabulary=400, max_length=32)


@pytest.fixture
def cache(tiny_vae: CausalVideoVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatentCache:
    monkeypatch.setattr(LatentCache, "shard_size", 4)
    config = LatentCacheConfig(groups={1: 4, 5: 6}, batch=2)
    return LatentCache(config, SpriteClips(DATA), tiny_vae, "weights-1", tmp_path)


def test_tokenizer_writes_any_text_and_survives_saving(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) <= 400
    assert len(tokenizer(PROMPT).input_ids) <= 16
    for text in (PROMPT, "", "Xylophone! {quoted} ~#@ 123", "A CAFÉ", "日本"):
        ids = tokenizer(text).input_ids
        assert loaded(text).input_ids == ids
        assert ids[-1] == 1
    assert tokenizer("").input_ids == [1]
    assert 2 not in tokenizer("Xylophone! {quoted} ~#@ 123").input_ids
    assert tokenizer("A CAFÉ").input_ids == tokenizer("a cafe").input_ids
    assert tokenizer.decode(tokenizer(PROMPT).input_ids, skip_special_tokens=True) == PROMPT


def test_a_dropped_caption_is_what_the_pipeline_feeds_as_negative_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    config = FlowObjectiveConfig.model_validate(
        {"kind": "flow", "vae": "x", "model": {}, "latents": {"groups": {1: 1}}, "text_encoder": {"d_model": 16}}
    )
    encoder = build_text_encoder(config, len(tokenizer), seed=0).eval()
    batch = tokenize(tokenizer, ["", PROMPT], 32)
    with torch.no_grad():
        mask = batch["attention_mask"].bool()
        trained = encoder(batch["input_ids"], attention_mask=mask)[0]
        fed, fed_mask = encode_texts(tokenizer, encoder, ["", PROMPT], 32, masked=True, device="cpu")
    for row in range(2):
        assert int(mask[row].sum()) == int(fed_mask[row].sum())
        torch.testing.assert_close(trained[row][mask[row]], fed[row][fed_mask[row]], rtol=0, atol=1e-5)


def test_sampling_is_shifted_as_the_recipe_says() -> None:
    shift = {"base_shift": 1.5, "max_shift": 2.0, "base_tokens": 16, "max_tokens": 80}
    config = FlowObjectiveConfig.model_validate(
        {"kind": "flow", "vae": "x", "model": {}, "latents": {"groups": {1: 1}}, "shift": shift}
    )
    scheduler = build_scheduler(config)
    scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=2.0)
    assert float(scheduler.sigmas[1]) == pytest.approx(math.exp(2) / (math.exp(2) + 1))
    assert scheduler.config.base_image_seq_len == 16
    assert scheduler.config.max_shift == 2.0
    with pytest.raises(ValueError, match="max_tokens=16 must be above"):
        ShiftConfig(base_tokens=16, max_tokens=16)


def test_captions_are_drawn_by_the_step(cache: LatentCache, tokenizer: PreTrainedTokenizerFast) -> None:
    source = CaptionedLatents(cache, tokenizer, 32, text_drop=0.0)
    first, again, later = (source.captions(Draw(Keys(0, step), 5, [3] * 6)) for step in (1, 1, 2))
    assert first == again
    assert first != later
    assert len(set(first)) > 1
    dropped = CaptionedLatents(cache, tokenizer, 32, text_drop=0.5).captions(Draw(Keys(0, 1), 5, [3] * 100))
    assert 30 < dropped.count("") < 70


def test_pictures_have_captions_without_motion(cache: LatentCache, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = CaptionedLatents(cache, tokenizer, 32, 0.0).captions(Draw(Keys(0, 1), 1, list(range(4)) * 20))
    moving = ("move", "slide", "drift", "bounc", "grow", "shrink", "left", "right", " up", " down", "still")
    assert not [text for text in texts if any(word in text for word in moving)]


def test_cached_latents_are_the_encoded_clips(cache: LatentCache, tokenizer: PreTrainedTokenizerFast) -> None:
    said: list[str] = []
    cache.fill(Control(cache.folder), said.append)
    cache.load()
    assert len(said) == 3  # one shard of pictures, two of clips
    batch = CaptionedLatents(cache, tokenizer, 32, 0.1).load(Draw(Keys(0, 0), 5, [5, 0, 5]))
    expected = encode_clips(cache.vae, cache.clips.stack([5, 0, 5], 5)["frames"])
    for name in ("latents", "last"):
        torch.testing.assert_close(batch[name], expected[name], rtol=1e-3, atol=1e-3)
    assert batch["latents"].shape == (3, 4, 2, 2, 2)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    pictures = CaptionedLatents(cache, tokenizer, 32, 0.1).load(Draw(Keys(0, 0), 1, [0]))
    assert "last" not in pictures

    cache.fill(Control(cache.folder), said.append)
    assert len(said) == 3  # nothing was encoded again


def test_a_last_shard_holds_no_more_than_is_asked_for(cache: LatentCache) -> None:
    assert list(cache.missing().values()) == [4, 6]
    cache.fill(Control(cache.folder), lambda text: None)
    cache.load()
    assert {length: len(group["latents"]) for length, group in cache.loaded.items()} == {1: 4, 5: 6}

    config = cache.config.model_copy(update={"groups": {1: 4, 5: 8}})  # enlarged: the last shard is made again, alone
    larger = LatentCache(config, cache.clips, cache.vae, "weights-1", cache.folder.parent)
    assert larger.folder == cache.folder
    assert list(larger.missing().values()) == [0, 4]
    said: list[str] = []
    larger.fill(Control(cache.folder), said.append)
    assert said == ["encoding clips of 5 frames: 4 of 8"]
    larger.load()
    for name, values in cache.get(5, list(range(6))).items():
        assert torch.equal(values, larger.get(5, list(range(6)))[name])


def test_clips_out_of_order_are_refused(cache: LatentCache) -> None:
    cache._rendered = iter([(module._Place(1, range(2, 4)), torch.zeros(2, 1, 16, 16, 3, dtype=torch.uint8))])
    with pytest.raises(AssertionError, match="was rendered where"):
        cache.make(1, range(2), Control(cache.folder))


def test_caching_stops_when_asked_and_goes_on(cache: LatentCache) -> None:
    control = Control(cache.folder.parent)
    encoded = []

    def say(text: str) -> None:
        encoded.append(text)
        if len(encoded) == 2:
            (cache.folder.parent / "stop").touch()

    with pytest.raises(StopRequested):
        cache.fill(control, say)
    control.acknowledge()
    assert len(list(cache.folder.rglob("*.safetensors"))) == 1
    cache.fill(control, say)
    assert len(list(cache.folder.rglob("*.safetensors"))) == 3
    assert not list(cache.folder.rglob("*.tmp"))


def test_workers_that_render_ahead_change_no_latent(cache: LatentCache, tmp_path: Path) -> None:
    cache.fill(Control(cache.folder), lambda text: None)
    config = cache.config.model_copy(update={"workers": 2})
    helped = LatentCache(config, cache.clips, cache.vae, "weights-2", tmp_path)
    there = helped.missing_shards()[1].path
    there.parent.mkdir(parents=True)
    there.symlink_to(cache.folder / there.relative_to(helped.folder))
    helped.fill(Control(cache.folder), lambda text: None)  # one is there, the workers pass it over
    for made in (cache, helped):
        made.load()
    for length in (1, 5):
        ours, theirs = (made.get(length, list(range(cache.size(length)))) for made in (cache, helped))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_latents_are_named_after_the_encoder_alone(tiny_vae: CausalVideoVAE) -> None:
    before = encoder_hash(tiny_vae)
    decoder, encoder = (copy.deepcopy(tiny_vae) for _ in range(2))
    with torch.no_grad():
        next(decoder.decoder.parameters()).add_(1.0)
        next(encoder.encoder.parameters()).add_(1.0)
    assert encoder_hash(decoder) == before
    assert encoder_hash(encoder) != before
    encoder = copy.deepcopy(tiny_vae)
    encoder.latents_std.mul_(2.0)
    assert encoder_hash(encoder) != before


def test_processes_share_the_caching(cache: LatentCache) -> None:
    said: list[list[str]] = [[], []]
    for process in (0, 1):
        cache.fill(Control(cache.folder), said[process].append, process, 2)
    assert [len(lines) for lines in said] == [2, 1]
    cache.load()
    assert cache.get(5, [0])["latents"].shape[0] == 1


def test_fingerprint_follows_what_is_cached(cache: LatentCache, tiny_vae: CausalVideoVAE, tmp_path: Path) -> None:
    def fingerprint(weights: str = "weights-1", data: SpritesConfig = DATA, count: int = 6, **more: Any) -> str:
        config = LatentCacheConfig(groups={1: 4, 5: count}, **more)
        return LatentCache(config, SpriteClips(data), tiny_vae, weights, tmp_path).fingerprint

    assert fingerprint() == cache.fingerprint
    others = {fingerprint("weights-2"), fingerprint(data=DATA.model_copy(update={"tier": 2})), fingerprint(count=7)}
    others.add(fingerprint(encode_dtype="bfloat16"))
    assert len(others) == 4
    assert cache.fingerprint not in others
    assert fingerprint(batch=1, workers=2) == cache.fingerprint, "these change no result"


def test_pixels_round_trip() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8, 1).expand(-1, -1, -1, -1, 3)
    assert torch.equal(to_frames(to_pixels(frames)), frames)
