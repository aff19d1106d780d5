"""The filter by text-video similarity, with a real CLIP of tiny random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from vgen.io.media.video import write_video
from vgen.training.data.footage.captions import caption, same_text
from vgen.training.data.footage.ingest import WHOLE, ingest
from vgen.training.data.footage.records import DataSet
from vgen.training.data.footage.scorers import TextVideoSimilarity


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    words = {word: number for number, word in enumerate(("<pad>", "<end>", "<unk>", "red", "blue", "square"))}
    fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=16
    )
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**size, "vocab_size": 6, "max_position_embeddings": 16, "eos_token_id": 1, "pad_token_id": 0},
        vision_config={**size, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path, scene) -> DataSet:
    (tmp_path / "footage").mkdir()
    for seed in (1, 2):
        write_video(tmp_path / "footage" / f"{seed}.mp4", scene(12, seed), 8.0)
    made = ingest(tmp_path / "footage", tmp_path / "ds", WHOLE, lambda text: None).data
    caption(made, same_text("red square"), lambda text: None)
    return made


def test_the_score_is_the_cosine_of_the_models_own_features(clip_folder, scene) -> None:
    frames = scene(2, 1)
    scorer = TextVideoSimilarity(clip_folder)
    inputs = CLIPProcessor.from_pretrained(clip_folder)(text=["blue square"], images=list(frames), return_tensors="pt")
    with torch.no_grad():
        found = CLIPModel.from_pretrained(clip_folder)(**inputs)
    image = found.image_embeds.numpy()
    image = (image / np.linalg.norm(image, axis=1, keepdims=True)).mean(axis=0)
    text = found.text_embeds.numpy()[0]
    expected = image @ text / np.linalg.norm(image) / np.linalg.norm(text)
    assert scorer.score(frames, ["blue square"]) == pytest.approx(float(expected), abs=1e-5)
    assert scorer.score(frames, []) == -1


def test_clips_below_the_limit_are_dropped_and_come_back(run_cli, data, clip_folder) -> None:
    words = ("data", "filter", data.folder, "--model", clip_folder, "--device", "cpu", "--at-least")
    done = run_cli(*words, "-1")
    assert done.code == 0 and "0 clips left out" in done.out, done.err
    assert done.err == f"loading {clip_folder}\n", "no bar of a library"
    scores = {line.split(": ")[0]: float(line.split(": ")[1]) for line in done.out.splitlines()[:2]}
    low, high = sorted(scores.values())
    assert low < high
    assert run_cli(*words, (low + high) / 2).code == 0
    left = DataSet.open(data.folder)
    assert [scores[clip.id] for clip in left.clips] == [high]
    assert [(scores[entry.id], entry.reason[:21]) for entry in left.dropped] == [(low, "text-video similarity")]
    refused = run_cli(*words, "2")
    assert refused.code == 2 and "leaves no clip" in refused.err
    assert run_cli(*words, "-1").code == 0
    assert len(DataSet.open(data.folder).clips) == 2


def test_what_is_no_clip_model_is_refused(run_cli, data, tmp_path) -> None:
    done = run_cli("data", "filter", data.folder, "--model", tmp_path, "--at-least", "0")
    assert done.code == 2 and "has no config.json: give the folder of a CLIP model" in done.err
