"""What `vgen data cache` makes for one model: latents of samples and embeddings of captions, by content.

A sample's latents lie in latents/VAE/SAMPLE.safetensors, a caption's embedding in text/; both are named after all that
they depend on and appear whole or not at all, so a killed run loses the sample it was at, and a second run writes
nothing. cache/KEY/index.json says which samples there are; it is written last.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vgen.errors import RequestError, counted
from vgen.io.files import part_of, write_text
from vgen.models import CausalVideoVAE
from vgen.pipelines.loading.model_files import ModelParts
from vgen.pipelines.text.cache import TextCache
from vgen.training.data.footage.buckets import Bucket, Geometry, Sample, plan_samples
from vgen.training.data.footage.captions import NO_CAPTION
from vgen.training.data.footage.files import mask_of
from vgen.training.data.footage.pixels import mask_hashes, read_mask, read_samples
from vgen.training.data.footage.records import Clip, DataSet, Dropped, content_key
from vgen.training.data.latents import encode_clips

INDEX = "index.json"
_TEXT_BYTES = 1 << 50


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds.

    Attributes:
        data: the data set's folder.
        model: name or folder where it lay; `model_hash` says which one it is.
        text_encoder: folder, or None: the model's own.
        vae_hash: of the weights that made the latents.
        max_sequence_length: of captions, in tokens.
        text_device: kind of device that encoded the captions.
        geometry: sizes, lengths and rates.
        samples: in the order of the clips.
        dropped: clips without a sample, and why.
        dtype: that latents were computed in.
        model_hash: see `vgen.hub.find.model_hash`.
    """

    data: Path
    model: str
    text_encoder: str | None
    vae_hash: str
    max_sequence_length: int
    text_device: str
    geometry: dict[str, Any]
    samples: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]
    dtype: str = "float32"
    model_hash: str = ""

    @classmethod
    def open(cls, file: Path) -> CacheIndex:
        """Read an index.json.

        Raises:
            RequestError: there is none, or it cannot be read.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            earlier = "model_hash" not in content
            samples = tuple(
                Sample(**{**row, "bucket": Bucket(*row["bucket"]), "frames": tuple(row["frames"])})
                for row in content.pop("samples")
            )
            dropped = tuple(Dropped(**row) for row in content.pop("dropped"))
            index = cls(**{**content, "data": file.parents[2], "samples": samples, "dropped": dropped})
        except FileNotFoundError:
            raise RequestError(
                f"{file} is not there: run `vgen data cache` (again, if it was interrupted); if the "
                "data set was moved, say where it is with --set data.folder=FOLDER."
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RequestError(f"{file} cannot be read: {error}; run `vgen data cache` again.") from None
        if earlier:
            raise RequestError(
                f"{file} was written by an earlier version: run `vgen data cache` again; a run that was begun with it "
                "resumes with --set data.cache=KEY, the folder that this names, and --set accept_other_data=true."
            )
        return index

    def latents_file(self, sample: Sample) -> Path:
        """Where a sample's latents lie, with the weight that its mask gives them."""
        name = content_key(sample.key, sample.mask, self.dtype)
        return self.data / "latents" / self.vae_hash / f"{name}.safetensors"

    def buckets(self) -> dict[Bucket, int]:
        """Samples in each bucket."""
        counts: dict[Bucket, int] = {}
        for sample in self.samples:
            counts[sample.bucket] = counts.get(sample.bucket, 0) + 1
        return dict(sorted(counts.items()))


def text_cache(data: Path) -> TextCache:
    """Where a data set keeps embeddings of captions."""
    return TextCache(data / "text", _TEXT_BYTES)


def fill_cache(
    data: DataSet,
    parts: ModelParts,
    geometry: Geometry,
    device: str,
    say: Callable[[str], None],
    bfloat16: bool = False,
) -> tuple[Path, CacheIndex, int]:
    """Encode what is missing.

    Args:
        data: with captions.
        parts: of the model.
        geometry: of the samples.
        device: encodes.
        say: called with what is being done.
        bfloat16: encode in bfloat16 where that is safe.
    Returns:
        The index file, the index, and how many samples were encoded now.
    Raises:
        RequestError: clips without a caption, or not one sample.
        MediaError: a source is gone or was changed.
    """
    uncaptioned = [clip.id for clip in data.clips if not data.captions(clip)]
    if uncaptioned:
        clips = counted(len(uncaptioned), "clip")
        raise RequestError(NO_CAPTION.format(clips=clips, first=uncaptioned[0], data=data.folder))
    planned, dropped = plan_samples(data.clips, geometry)
    masks = mask_hashes(data.clips)
    samples = [replace(sample, mask=masks[sample.clip]) for sample in planned]
    if not samples:
        reasons = "; ".join(f"{entry.id}: {entry.reason}" for entry in dropped[:5])
        raise RequestError(f"{data.folder} gives not one sample for {parts.name}: {reasons}.")
    length = int(parts.call_defaults["max_sequence_length"])
    kind, dtype = torch.device(device).type, "bfloat16" if bfloat16 else "float32"
    index = CacheIndex(
        data.folder, parts.name, parts.text_encoder_folder, parts.vae_hash, length, kind, asdict(geometry),
        tuple(samples), tuple(dropped), dtype, parts.model_hash,
    )  # fmt: skip
    written = _encode_samples(data, index, parts, device, say, bfloat16)
    texts = sorted({text for clip in data.clips for text in data.captions(clip)} | {""})
    with torch.no_grad():
        text = parts.text(text_cache(data.folder))
        text.encode(texts, length, masked=parts.convention.mask_text_encoder, device=device)
    key = f"c{content_key(parts.identity, asdict(geometry), length, dtype)}"  # never reads as a number in YAML
    place = data.folder / "cache" / key / INDEX
    write_text(place, _as_json(index))
    return place, index, written


def _as_json(index: CacheIndex) -> str:
    content = asdict(index)
    del content["data"]
    for sample, row in zip(index.samples, content["samples"], strict=True):
        row["bucket"] = list(sample.bucket)
    return json.dumps(content) + "\n"


def _encode_samples(
    data: DataSet, index: CacheIndex, parts: ModelParts, device: str, say: Callable[[str], None], bfloat16: bool
) -> int:
    missing = [sample for sample in index.samples if not index.latents_file(sample).is_file()]
    if not missing:
        return 0
    vae, clips = parts.load_vae().to(device), {clip.id: clip for clip in data.clips}
    for done, (sample, frames) in enumerate(read_samples(missing, clips), start=1):
        tensors = encode_clips(vae, torch.from_numpy(frames)[None], bfloat16)
        stored = {name: value[0].half() for name, value in tensors.items()}
        weight = _weight(clips[sample.clip], sample, vae)
        write_tensors(index.latents_file(sample), stored if weight is None else {**stored, "weight": weight})
        if done % 25 == 0 or done == len(missing):
            say(f"encoded {done} of {counted(len(missing), 'sample')}")
    return len(missing)


def _weight(clip: Clip, sample: Sample, vae: CausalVideoVAE) -> Tensor | None:
    """The clip's mask as a weight of each latent, [1, f, h, w]: the mean over its pixels."""
    path = mask_of(Path(clip.source)) if sample.mask else None
    if path is None:
        return None
    mask = torch.from_numpy(read_mask(path, clip, sample))[None, None]
    strides = vae.strides
    spatial = torch.nn.functional.avg_pool3d(mask, (1, strides.height, strides.width))
    rest = spatial[:, :, 1:]
    if rest.shape[2]:
        rest = torch.nn.functional.avg_pool3d(rest, (strides.temporal, 1, 1))
    return torch.cat([spatial[:, :, :1], rest], dim=2)[0]


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with part_of(path, overwrite=True) as part:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part)


def find_index(data: Path, model: str, cache: str | None = None) -> Path:
    """The cache of a data set for a model.

    Args:
        data: folder of the data set.
        model: name or folder; it may lie elsewhere than when it was given to `vgen data cache`.
        cache: key of the cache, where there are several.
    Raises:
        RequestError: there is none, or several.
    """
    wanted, files = ModelParts.find(model).model_hash, []
    for file in sorted((data / "cache").glob(f"{cache or '*'}/{INDEX}")):
        with contextlib.suppress(RequestError):  # of an earlier version, or damaged
            files += [file] if CacheIndex.open(file).model_hash == wanted else []
    if not files:
        raise RequestError(
            f"{data} holds nothing for model {model!r}: run `vgen data cache {data} --model {model}` first."
        )
    if len(files) > 1:
        keys = ", ".join(file.parent.name for file in files)
        raise RequestError(f"{data} has several caches for model {model!r}: choose one with --cache, of {keys}.")
    return files[0]
