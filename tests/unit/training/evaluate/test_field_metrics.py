"""FVD, CLIP score and LPIPS: from local weights or not at all. The weights here are random, in the real layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from vgen.errors import CheckpointError, ShapeError
from vgen.pipelines import TextToVideoPipeline
from vgen.training.evaluate.clip_score import ClipScore
from vgen.training.evaluate.evaluate import evaluate_model
from vgen.training.evaluate.field_metrics import (
    FieldWeights,
    I3d,
    field_lines,
    field_scores,
    frechet_distance,
    frechet_of_features,
)
from vgen.training.evaluate.model import Budget, ScoredModel


def test_the_frechet_distance_is_that_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(4, 4)) for _ in range(2))
    covariance, other = first @ first.T, second @ second.T
    mean, shift = np.zeros(4), np.array([1.0, 0.0, 2.0, 0.0])
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(mean, covariance, mean + shift, covariance) == pytest.approx(5.0)
    expected = np.trace(covariance + other - 2 * linalg.sqrtm(covariance @ other).real) + 5.0
    assert frechet_distance(mean, covariance, mean + shift, other) == pytest.approx(expected)
    assert frechet_distance(mean, 4 * np.eye(4), mean, np.eye(4)) == pytest.approx(4.0)
    flat = np.diag([1.0, 0.0, 0.0, 0.0])  # fewer samples than features: not invertible
    assert frechet_distance(mean, flat, mean, 4 * flat) == pytest.approx(1.0)


def test_features_are_fitted_first() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(20000, 3))
    assert frechet_of_features(features, features[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_of_features(features, 2 * rng.normal(size=(20000, 3)) + 1) == pytest.approx(6.0, rel=0.1)
    with pytest.raises(ShapeError, match="two rows or more"):
        frechet_of_features(features[:1], features)


class _FakeI3d(nn.Module):
    """Called as the real one is; its features are the mean colours, many times."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(
        self, video: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        means = video.mean(dim=[2, 3, 4])
        return means.repeat(1, self.features // 3 + 1)[:, : self.features]


def _i3d(folder: Path, features: int = 400) -> Path:
    path = folder / f"i3d_{features}.pt"
    torch.jit.script(_FakeI3d(features)).save(str(path))
    return path


def _clips(count: int, seed: int, frames: int = 9) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_fvd_takes_the_400_features_of_i3d_and_nothing_else(tmp_path: Path) -> None:
    features = I3d(_i3d(tmp_path))(_clips(10, 0))
    assert features.shape == (10, 400)
    np.testing.assert_allclose(features[0, :3], _clips(1, 0)[0].mean(axis=(0, 1, 2)), rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"gives features \(8, 30\).*must not be called so"):
        I3d(_i3d(tmp_path, 30))(_clips(10, 0))
    with pytest.raises(CheckpointError, match="num_frames=5 is too short"):
        I3d(_i3d(tmp_path))(_clips(2, 0, frames=5))
    (tmp_path / "no.pt").write_bytes(b"no program")
    with pytest.raises(CheckpointError, match="is not a TorchScript file"):
        I3d(tmp_path / "no.pt")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP with a tokenizer of four words."""
    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 8, "max_position_embeddings": 6, "eos_token_id": 2, "bos_token_id": 1},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "red": 3, "blue": 4, "circle": 5, "[UNK]": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


def test_a_clip_score_is_the_mean_cosine_of_frames_and_text(clip_folder: Path) -> None:
    score = ClipScore(clip_folder)
    clips, texts = _clips(2, 3, frames=3), ["red circle", "blue"]
    found = score(clips, texts)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in
                 ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip
    for clip, text, value in zip(clips, texts, found, strict=True):
        ids = torch.tensor([score.tokenizer(text).input_ids])
        pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            both = model(input_ids=ids, pixel_values=(pixels - mean) / std)
        cosines = torch.nn.functional.cosine_similarity(both.image_embeds, both.text_embeds)
        assert value == pytest.approx(float((100 * cosines).clamp(min=0).mean()), abs=1e-3)
    wide = np.concatenate([clips[0]] * 3, axis=2)
    assert score([wide], texts[:1])[0] == pytest.approx(found[0], abs=1e-3)  # the middle third is cut out
    assert score([clips[0]], ["red " * 50]).shape == (1,)


def test_no_weights_no_score(tmp_path: Path) -> None:
    for weights, message in (
        (FieldWeights(clip_model=tmp_path / "no"), "has no config.json.*nothing is downloaded"),
        (FieldWeights(fvd_model=tmp_path / "no.pt"), "is not there: FVD needs the TorchScript file"),
        (FieldWeights(lpips=tmp_path), "LPIPS needs its weights"),
    ):
        with pytest.raises(CheckpointError, match=message):
            weights.check()
        with pytest.raises(CheckpointError, match=message):
            evaluate_model("sprites", field=weights)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(CheckpointError, match="of the kind 'siglip'"):
        ClipScore(tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scores_stand_beside_those_of_the_originals(
    tiny_pipeline_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    pipeline = TextToVideoPipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    weights = FieldWeights(clip_folder, _i3d(tmp_path))
    weights.check()
    model = ScoredModel(pipeline, 1, Budget(2, 3, 1, 2), settings={"num_inference_steps": 1})
    found = field_scores(model, weights)
    assert found["clips"] == 3 and found["frames"] == 9
    assert found["fvd"] > 0
    assert {"clip_score", "clip_score_of_originals"} <= found.keys()
    assert "lpips_of_reconstructions" not in found
    assert [(line.measure, line.clips) for line in field_lines(found)] == [
        ("FVD, clips of 9 frames", "3"), ("CLIP score", "3")
    ]  # fmt: skip
    only = field_scores(model, FieldWeights(clip_folder))
    assert "fvd" not in only and only["clip_score"] == pytest.approx(found["clip_score"])
