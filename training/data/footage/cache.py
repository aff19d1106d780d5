"""What `vgen data cache` makes for one model: latents of samples and embeddings of captions, by content.

A sample's latents are in latents/VAE/SAMPLE.safetensors, a caption's embedding in text/; both are named after all that
they depend on and written atomically, so a killed run loses one sample, and a second run writes nothing.
cache/KEY/index.json lists the samples; it is written last.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from vgen.errors import RequestError, counted
from vgen.io.files import write_text
from vgen.models import CausalVideoVAE
from vgen.pipelines.loading.model_files import ModelParts
from vgen.pipelines.text.cache import TextCache
from vgen.training.data.footage.buckets import Bucket, Geometry, Sample, plan_samples
from vgen.training.data.footage.files import mask_of
from vgen.training.data.footage.pixels import mask_hashes, read_mask, read_samples
from vgen.training.data.footage.records import Clip, DataSet, Dropped, content_key
from vgen.training.data.latents import encode_clips
from vgen.training.data.shards import write_tensors

INDEX = "index.json"
_TEXT_BYTES = 1 << 50


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds.

    Attributes:
        data: the data set's folder.
        model, model_hash: name or folder of the model at that time, and its `vgen.hub.find.model_hash`.
        text_encoder: folder, or None: the model's own.
        vae_hash: of the weights that made the latents.
        max_sequence_length: of captions, in tokens.
        text_device: kind of device that encoded the captions.
        geometry: sizes, lengths and rates.
        samples, dropped: in the order of the clips; those without a sample, with the reason.
        dtype: that latents were computed in.
    """

    data: Path
    model: str
    text_encoder: str | None
    vae_hash: str
    max_sequence_length: int
    text_device: str
    geometry: Geometry
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
            index = TypeAdapter(cls).validate_python({**content, "data": file.parents[2]})
        except FileNotFoundError:
            raise RequestError(
                f"{file} is missing: run `vgen data cache` (again, if it was interrupted); if the data set was moved, "
                "name its folder with --set data.folder=FOLDER."
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise RequestError(f"{file} cannot be read: {error}; run `vgen data cache` again.") from None
        if not index.model_hash:
            raise RequestError(
                f"{file} was written by an earlier version: run `vgen data cache` again; a run that was begun with it "
                "resumes with --set data.cache=KEY, the folder that this names, and --set accept_other_data=true."
            )
        return index

    def latents_file(self, sample: Sample) -> Path:
        """The file of a sample's latents, and of the weight that its mask gives them."""
        name = content_key(sample.key, sample.mask, self.dtype)
        return self.data / "latents" / self.vae_hash / f"{name}.safetensors"

    def buckets(self) -> dict[Bucket, int]:
        """Samples in each bucket."""
        return dict(sorted(Counter(sample.bucket for sample in self.samples).items()))


def text_cache(data: Path) -> TextCache:
    """The embeddings of a data set's captions."""
    return TextCache(data / "text", _TEXT_BYTES)


def fill_cache(
    data: DataSet,
    parts: ModelParts,
    geometry: Geometry,
    device: str,
    on_line: Callable[[str], None],
    bfloat16: bool = False,
) -> tuple[Path, CacheIndex, int]:
    """Encode what is missing.

    Args:
        data, parts, geometry: the captioned data set, the model, and its samples.
        device: of the encoders.
        on_line: called with a line of progress.
        bfloat16: encode in bfloat16 where that is safe.
    Returns:
        The index file, the index, and the number of samples encoded now.
    Raises:
        RequestError: clips without a caption, or no sample.
        MediaError: a source is gone or was changed.
    """
    captions = data.all_captions()
    planned, dropped = plan_samples(data.clips, geometry)
    masks = mask_hashes(data.clips)
    samples = [replace(sample, mask=masks[sample.clip]) for sample in planned]
    if not samples:
        reasons = "; ".join(f"{entry.id}: {entry.reason}" for entry in dropped[:5])
        raise RequestError(f"{data.folder} has no sample for {parts.name}: {reasons}.")
    length = int(parts.call_defaults["max_sequence_length"])
    kind, dtype = torch.device(device).type, "bfloat16" if bfloat16 else "float32"
    index = CacheIndex(
        data.folder, parts.name, parts.text_encoder_folder, parts.vae_hash, length, kind, geometry,
        tuple(samples), tuple(dropped), dtype, parts.model_hash,
    )  # fmt: skip
    written = _encode_samples(data, index, parts, device, on_line, bfloat16)
    texts = sorted({"", *chain.from_iterable(captions.values())})
    with torch.no_grad():
        text = parts.text(text_cache(data.folder))
        text.encode(texts, length, masked=parts.convention.mask_text_encoder, device=device)
    key = f"c{content_key(parts.identity, asdict(geometry), length, dtype)}"  # never reads as a number in YAML
    place = data.folder / "cache" / key / INDEX
    content = asdict(index)
    del content["data"]
    write_text(place, json.dumps(content) + "\n")
    return place, index, written


def _encode_samples(
    data: DataSet, index: CacheIndex, parts: ModelParts, device: str, on_line: Callable[[str], None], bfloat16: bool
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
            on_line(f"encoded {done} of {counted(len(missing), 'sample')}")
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


def find_index(data: Path, model: str, cache: str | None = None) -> Path:
    """The cache of a data set for a model.

    Args:
        data: folder of the data set.
        model: name or folder; it may have been moved since `vgen data cache`.
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
            f"{data} has no cache for model {model!r}: run `vgen data cache {data} --model {model}` first."
        )
    if len(files) > 1:
        keys = ", ".join(file.parent.name for file in files)
        raise RequestError(f"{data} has several caches for model {model!r}: choose one with --cache, of {keys}.")
    return files[0]
