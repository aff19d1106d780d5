"""Which safetensors files hold a component's weights: whole or in shards, plain or of a variant such as "fp16".

A folder may hold more than is loaded: several variants, and what an earlier save has left behind. One rule for loading,
checking and hashing: of the variant asked for, else plain, a whole file before an index of shards.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from vgen.errors import CheckpointError, RequestError

logger = logging.getLogger(__name__)

NAMES = ("diffusion_pytorch_model", "model")
"""Weights are called so by diffusers and by transformers."""

_FILE = re.compile(
    rf"(?P<name>{'|'.join(NAMES)})(\.(?P<variant>[\w-]+?))?(?P<shard>-\d{{5}}-of-\d{{5}})?\.safetensors"
    r"(?P<index>(\.(?P<before>\w+))?\.index(\.(?P<after>\w+))?\.json)?"
)


@dataclass(frozen=True)
class Weights:
    """The weights of one component that are loaded.

    Attributes:
        files: safetensors, shards in the order of their names.
        variant: for instance "fp16"; None: plain.
        index: of the shards; None: there is one file.
    """

    files: tuple[Path, ...]
    variant: str | None
    index: Path | None = None

    @property
    def name(self) -> str:
        """Of `NAMES`."""
        return (self.index or self.files[0]).name.partition(".")[0]


def check_variant(variant: str | None) -> str | None:
    """Refuse a variant that is no part of a file's name.

    Raises:
        RequestError: names the value.
    """
    if variant is None or (isinstance(variant, str) and re.fullmatch(r"[\w-]+", variant)):
        return variant
    raise RequestError(
        f"variant={variant!r} must be a name such as 'fp16', as in diffusion_pytorch_model.fp16.safetensors."
    )


def variants_in(folder: Path) -> list[str]:
    """The variants of which a component's folder holds weights; "" stands for plain ones."""
    found = set()
    for match in map(_FILE.fullmatch, sorted(path.name for path in folder.iterdir())):
        if match is not None and (match["index"] or not match["shard"]):
            found.add(match["before"] or match["after"] or match["variant"] or "")
    return sorted(found)


def find_weights(folder: Path, variant: str | None = None) -> Weights:
    """The weights of one component.

    Args:
        folder: of the component.
        variant: taken where it is there, else the plain weights; None: the plain weights, or the only variant there.
    Raises:
        CheckpointError: there are none, or a shard that the index lists is missing.
    """
    for wanted in dict.fromkeys((variant, None)):
        if (found := _of_variant(folder, wanted)) is not None:
            return found
    others = variants_in(folder)
    if variant is None and len(others) == 1 and (found := _of_variant(folder, others[0])) is not None:
        return found
    if others:
        raise CheckpointError(
            f"{folder} has no plain weights, only the variants {', '.join(others)}: pass variant={others[0]!r}."
        )
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    hint = f" Only {pickles[0]} is there, which could run code when loaded." if pickles else ""
    raise CheckpointError(f"{folder} has no weights: {NAMES[0]}.safetensors is missing.{hint}")


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files of `find_weights`."""
    return list(find_weights(folder, variant).files)


def is_idle(file: Path, chosen: dict[Path, set[str]], variant: str | None = None) -> bool:
    """Whether a file holds weights, or an index of them, that are not loaded.

    Args:
        file: any.
        chosen: what is loaded by folder; filled in here, for the next file of the same folder.
        variant: see `find_weights`.
    """
    if _FILE.fullmatch(file.name) is None:
        return False
    if file.parent not in chosen:
        try:
            found = find_weights(file.parent, variant)
            chosen[file.parent] = {path.name for path in (*found.files, *([found.index] if found.index else []))}
        except CheckpointError:
            chosen[file.parent] = {path.name for path in file.parent.iterdir()}
    return file.name not in chosen[file.parent]


def _of_variant(folder: Path, variant: str | None) -> Weights | None:
    for name in NAMES:
        whole = _whole(folder, name, variant)
        if whole.is_file():
            return Weights((whole,), variant)
        index = next((path for path in _indices(folder, name, variant) if path.is_file()), None)
        if index is not None:
            return Weights(_shards(index), variant, index)
    return None


def _whole(folder: Path, name: str, variant: str | None) -> Path:
    return folder / (f"{name}.{variant}.safetensors" if variant else f"{name}.safetensors")


def _indices(folder: Path, name: str, variant: str | None) -> list[Path]:
    """How an index may be called: as it is saved today first."""
    if not variant:
        return [folder / f"{name}.safetensors.index.json"]
    names = (f"safetensors.index.{variant}", f"safetensors.{variant}.index", f"{variant}.safetensors.index")
    return [folder / f"{name}.{middle}.json" for middle in names]


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        shards = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(shards.values()))
        whole = all(isinstance(name, str) for name in names)
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        whole, names = False, []
    if not whole:
        raise CheckpointError(f"{index} has no weight_map from keys to files.")
    files = tuple(index.parent / name for name in names)
    for shard in files:
        if shard.parent != index.parent or not shard.is_file():
            raise CheckpointError(f"{shard} is missing: {index.name} lists it. Fetch the whole model again.")
    return files


@contextmanager
def as_plain(folder: Path, variant: str | None = None, keep: bool = False) -> Iterator[Path]:
    """A folder in which diffusers and transformers find the weights of `find_weights`, under plain names.

    They know fewer names of an index than there are, and diffusers takes an old index before a whole file.

    Args:
        folder: of a component, or of a model with a folder per component.
        variant: see `find_weights`.
        keep: the links stay until the process ends, for weights that are read later.
    Yields:
        `folder` itself where its plain names say the same, else links to what is in it.
    Raises:
        CheckpointError: see `find_weights`.
    """
    alone = _holds_weights(folder)
    components = [folder] if alone else [path for path in sorted(folder.iterdir()) if _holds_weights(path)]
    renamed = {path: weights for path in components if _differs(weights := find_weights(path, variant))}
    if not renamed:
        yield folder
        return
    place = Path(mkdtemp(prefix="vgen-"))
    try:
        if not alone:
            _link(set(folder.iterdir()) - renamed.keys(), place)
        for path, weights in renamed.items():
            own = place if alone else place / path.name
            own.mkdir(exist_ok=True)
            _link({file for file in path.iterdir() if _FILE.fullmatch(file.name) is None}, own)
            if weights.index is None:
                (own / f"{weights.name}.safetensors").symlink_to(weights.files[0].resolve())
            else:
                _link(weights.files, own)
                (own / f"{weights.name}.safetensors.index.json").symlink_to(weights.index.resolve())
        yield place
    finally:
        if keep:
            atexit.register(shutil.rmtree, place, ignore_errors=True)
        else:
            shutil.rmtree(place, ignore_errors=True)


def _holds_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(_FILE.fullmatch(path.name) for path in folder.iterdir())


def _differs(weights: Weights) -> bool:
    """Whether diffusers would not load these weights where it is given nothing but their folder."""
    index = weights.files[0].parent / f"{weights.name}.safetensors.index.json"
    stale = weights.index is None and index.is_file()
    if stale and weights.variant is None:
        logger.warning("%s is loaded; %s, which another save left behind, is ignored.", weights.files[0], index.name)
    return weights.variant is not None or stale


def _link(paths: Iterable[Path], place: Path) -> None:
    for path in paths:
        (place / path.name).symlink_to(path.resolve())


def forget_weights(folder: Path, variant: str | None = None) -> None:
    """Remove the whole file and the indices of a variant, which a save into `folder` is about to replace.

    diffusers and transformers write either a whole file or an index, and leave the other of an earlier save behind.
    """
    for name in NAMES:
        for file in (_whole(folder, name, variant), *_indices(folder, name, variant)):
            file.unlink(missing_ok=True)


def forget_broken_indices(folder: Path) -> None:
    """Remove every index that lists a file which is not there: a save removes shards of other variants too."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        match = _FILE.fullmatch(path.name)
        if match is not None and match["index"]:
            try:
                _shards(path)
            except CheckpointError:
                path.unlink()
