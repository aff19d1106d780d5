"""CLIP score, with a CLIP that lies on this machine: how well the frames of a clip fit its text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from vgen.errors import CheckpointError
from vgen.pipelines.text.encoder import quietly

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CHUNK = 32


class ClipScore:
    """100 max(cos(picture, text), 0), the mean over frames (Hessel et al. 2021, without their factor 2.5).

    Args:
        folder: a CLIP as transformers saves it: config.json, model.safetensors and a tokenizer.
        device: where to run.
    Raises:
        CheckpointError: it is missing, or is not a CLIP.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        check_clip_folder(folder)
        try:
            with quietly():
                self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"clip_model={str(folder)!r} cannot be loaded: {error}") from None
        self.model = self.model.float().eval().to(device)
        self.side = self.model.config.vision_config.image_size
        settings = _preprocessor(folder)
        self.mean, self.std = (torch.tensor(settings.get(name, own)).view(3, 1, 1) for name, own in
                               (("image_mean", _MEAN), ("image_std", _STD)))  # fmt: skip

    @torch.no_grad()
    def __call__(self, clips: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
        """The score of each clip.

        Args:
            clips: uint8 [F, H, W, 3] each.
            texts: one per clip; what does not fit in CLIP's context is cut off.
        Returns:
            [N], 0 to 100.
        """
        device = self.model.device
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt").to(
            device
        )
        text = self._features(self.model.get_text_features(**tokens))
        scores = []
        for clip, row in zip(clips, text, strict=True):
            pictures = torch.stack([self._prepare(frame) for frame in clip])
            seen = torch.cat(
                [
                    self._features(self.model.get_image_features(pixel_values=part.to(device)))
                    for part in pictures.split(_CHUNK)
                ]
            )
            scores.append(float((100.0 * (seen @ row)).clamp_min(0.0).mean()))
        return np.array(scores)

    def _features(self, found: object) -> Tensor:
        """Unit vectors [N, D] of what CLIP returns, a tensor or an output that holds one."""
        features = found if isinstance(found, Tensor) else found.pooler_output  # type: ignore[attr-defined]
        return features.float() / features.float().norm(dim=-1, keepdim=True)

    def _prepare(self, frame: NDArray[np.uint8]) -> Tensor:
        """CLIP's own preparation: the short side to its size (bicubic), the middle cut out, normalised."""
        picture, side = Image.fromarray(frame), self.side
        scale = side / min(picture.size)
        width, height = (max(side, round(length * scale)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        pixels = np.asarray(picture.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
        return (torch.from_numpy(pixels).permute(2, 0, 1) - self.mean) / self.std


def check_clip_folder(folder: Path) -> None:
    """Refuse what is not a CLIP of this machine, before anything is loaded or made.

    Raises:
        CheckpointError: names what is missing.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(
            f"clip_model={str(folder)!r} has no config.json: give the folder of a CLIP that lies on this machine "
            "(nothing is downloaded), or leave the CLIP score out."
        )
    try:
        kind = json.loads(config.read_text()).get("model_type")
    except (ValueError, AttributeError):
        kind = None
    if kind != "clip":
        raise CheckpointError(f"clip_model={str(folder)!r} is of the kind {kind!r}; a CLIP score needs 'clip'.")


def _preprocessor(folder: Path) -> dict[str, list[float]]:
    file = folder / "preprocessor_config.json"
    return json.loads(file.read_text()) if file.is_file() else {}
