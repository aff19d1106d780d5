"""Captions by a vision-language model: a real model of transformers with tiny random weights, from a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vgen.errors import CheckpointError
from vgen.io.media.video import write_video
from vgen.training.data.footage import describe as module
from vgen.training.data.footage.describe import frame_grid
from vgen.training.data.footage.ingest import WHOLE, ingest

WORDS = ["<pad>", "</s>", "<unk>", "<image>", "USER", "ASSISTANT", *[f"word{n}" for n in range(58)]]
TEMPLATE = (
    "{% for m in messages %}USER {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
    "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}ASSISTANT"
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "vlm"
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=3, vision_feature_layer=-1)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory, scene):
    root = tmp_path_factory.mktemp("footage")
    for seed in (1, 2):
        write_video(root / f"{seed}.mp4", scene(12, seed), 8.0)
    return ingest(root, root / "ds", WHOLE, lambda text: None).data


def _said_by_transformers(folder: Path, picture, question: str) -> str:
    """The model called by hand, with the prompt written out."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=picture, text=f"USER <image> {question} ASSISTANT", return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=module.MAX_NEW_TOKENS, do_sample=False)
    return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_caption_is_what_the_model_says_of_the_grid(run_cli, data, model_folder) -> None:
    words = ["data", "caption", data.folder, "--from", "model", "--model", model_folder, "--question", "word1 word2"]
    done = run_cli(*words, "--device", "cpu")
    assert done.code == 0 and "2 clips captioned now, 0 without a caption" in done.out, done.err
    captions = [data.captions(clip) for clip in data.clips]
    expected = [_said_by_transformers(model_folder, frame_grid(clip), "word1 word2") for clip in data.clips]
    assert captions == [(" ".join(text.split()),) for text in expected]
    assert captions[0] != captions[1]  # it sees the frames
    again = run_cli(*words, "--device", "cpu")
    assert "0 clips captioned now" in again.out


def test_the_grid_shows_frames_in_reading_order(data, scene) -> None:
    picture = np.asarray(frame_grid(data.clips[0])).astype(int)
    assert picture.shape == (96, 128, 3)
    frames = scene(12, 1).astype(int)
    for place, frame in enumerate((0, 4, 7, 11)):
        row, column = divmod(place, 2)
        part = picture[row * 48 : (row + 1) * 48, column * 64 : (column + 1) * 64]
        errors = [np.abs(part - other).mean() for other in frames]
        assert int(np.argmin(errors)) == frame


def test_folders_that_are_no_such_model(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        module.describer(str(tmp_path), "what is it?", "cpu")
