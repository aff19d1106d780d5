"""Captions by a vision-language model on this machine: a grid of a clip's frames, and a question about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vgen.errors import CheckpointError, RequestError, VgenError
from vgen.pipelines.text.encoder import quietly
from vgen.training.data.footage.buckets import thumbnail_sample
from vgen.training.data.footage.captions import Describe
from vgen.training.data.footage.pixels import read_samples
from vgen.training.data.footage.records import Clip

QUESTION = (
    "The picture shows frames of one video clip, in reading order. Describe in one or two sentences what is seen and "
    "how it moves. Do not mention frames or pictures."
)
SIDE = 2
"""Frames along each side of the grid."""

FRAME_PIXELS = 384
"""Longer side of a frame in the grid."""

MAX_NEW_TOKENS = 160


def describer(folder: str, question: str, device: str) -> Describe:
    """Captions by a model folder of transformers, any that `AutoModelForImageTextToText` loads: see `load_local`.

    Raises:
        RequestError: `folder` is empty, or the model answers `question` about a clip's grid with nothing.
    """
    if not folder:
        raise RequestError("--model is missing: give the folder of a vision-language model of transformers.")
    model, processor = load_local(Path(folder), "AutoModelForImageTextToText", "vision-language model", device)

    def describe(clip: Clip) -> list[str]:
        text = answer(model, processor, frame_grid(clip), question)
        if not text:
            raise RequestError(f"the model in {folder} says nothing about {clip.id}.")
        return [text]

    return describe


def load_local(folder: Path, loader: str, kind: str, device: str) -> tuple[Any, Any]:
    """A model of transformers and its processor, from a local folder: nothing is fetched, no code in it is run.

    Args:
        folder: with config.json, safetensors weights and a processor.
        loader: name of the transformers class that reads the weights.
        kind: of model, for messages.
        device: of the model.
    Raises:
        CheckpointError: they are missing or cannot be loaded.
    """
    import transformers

    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: give the folder of a {kind} of transformers.")
    try:
        with quietly():
            model = getattr(transformers, loader).from_pretrained(
                folder, dtype="auto", use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
            processor = transformers.AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except ImportError as error:
        raise VgenError(f"The processor in {folder} needs a package that is not installed: {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"The {kind} in {folder} cannot be loaded: {error}") from error
    return model.to(device).eval(), processor


@torch.no_grad()
def answer(model: Any, processor: Any, picture: Image.Image, question: str) -> str:
    """What a model says about a picture, greedily; one line."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    if getattr(processor, "chat_template", None):
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        token = getattr(processor, "image_token", "")
        inputs = processor(images=picture, text=f"{token}{question}", return_tensors="pt")
    inputs = inputs.to(model.device)
    made = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    begin = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return " ".join(processor.decode(made[0, begin:], skip_special_tokens=True).split())


def frame_grid(clip: Clip, side: int = SIDE) -> Image.Image:
    """side x side frames of a clip, evenly spaced, in reading order; of a picture the picture."""
    count = 1 if clip.kind == "image" else side * side
    sample = thumbnail_sample(clip, count, FRAME_PIXELS / max(clip.crop[2:]))
    _, frames = next(iter(read_samples([sample], {clip.id: clip})))
    if count == 1:
        return Image.fromarray(frames[0])
    _, height, width, _ = sample.bucket
    rows = frames.reshape(side, side, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(rows.reshape(side * height, side * width, 3))
