"""What a cache is named after: footage, mask, number format and caption, each by content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgen.errors import MediaError, RequestError
from vgen.pipelines.loading.model_files import ModelParts
from vgen.training.config.data import FootageConfig
from vgen.training.data.footage.cache import CacheIndex, fill_cache, find_index
from vgen.training.data.footage.captions import caption, same_text
from vgen.training.data.footage.commands import geometry_for
from vgen.training.data.footage.ingest import WHOLE, ingest
from vgen.training.data.footage.pixel_source import FootageClips
from vgen.training.data.footage.records import DataSet
from vgen.training.data.footage.source import FootageLatents
from vgen.training.objectives.flow.build import footage_source


class Project:
    """A folder of one picture, its data set, and what a tiny model caches of it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.footage, self.folder, self.parts = folder / "in", folder / "ds", ModelParts.find(model)
        self.footage.mkdir()
        self.picture("a.png", 0)
        self.ingest()

    def picture(self, name: str, seed: int) -> None:
        pixels = np.random.default_rng(seed).integers(30, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(self.footage / name)

    def mask(self, columns: int) -> Path:
        white = np.zeros((32, 32), np.uint8)
        white[:, :columns] = 255
        Image.fromarray(white).save(self.footage / "a.mask.png")
        return self.footage / "a.mask.png"

    def ingest(self) -> None:
        made = ingest(self.footage, self.folder, WHOLE, lambda text: None)
        caption(made.data, same_text("noise"), lambda text: None)

    def cache(self, **more: Any) -> tuple[Path, CacheIndex, int]:
        geometry = geometry_for(self.parts, "1", "32x32")
        return fill_cache(DataSet.open(self.folder), self.parts, geometry, "cpu", lambda text: None, **more)

    def source(self, place: Path) -> FootageLatents:
        config = FootageConfig(kind="footage", folder=self.folder, cache=Path(place.parent.name))
        return footage_source(config, CacheIndex.open(config.index_file), self.parts, 0.0)


@pytest.fixture
def project(tmp_path: Path, tiny_pipeline_folder: Path) -> Project:
    return Project(tmp_path, tiny_pipeline_folder)


def test_a_mask_counts_whenever_it_comes_and_goes(project: Project) -> None:
    place, _, written = project.cache()
    assert written == 1 and project.cache()[2] == 0
    plain = project.source(place)
    assert "weight" not in plain.stack([0])
    seen = {plain.fingerprint}
    for columns in (16, 8):
        project.mask(columns)
        with pytest.raises(RequestError, match=r"the mask of clip a-.* was added, changed or removed since"):
            project.source(place)
        assert project.cache()[2] == 1
        source = project.source(place)
        assert float(source.stack([0])["weight"].mean()) == pytest.approx(columns / 32, abs=0.03)
        seen.add(source.fingerprint)
    (project.footage / "a.mask.png").unlink()
    with pytest.raises(RequestError, match="was added, changed or removed"):
        project.source(place)
    assert project.cache()[2] == 0, "the latents without a mask are still there"
    assert project.source(place).fingerprint == plain.fingerprint and len(seen) == 3


def test_a_mask_does_not_matter_to_the_pixels(project: Project) -> None:
    place, _, _ = project.cache()
    first = FootageClips(CacheIndex.open(place), {}).fingerprint
    project.mask(16)
    assert FootageClips(CacheIndex.open(place), {}).fingerprint == first


def test_footage_replaced_in_place_is_not_filed_under_the_old_hash(project: Project) -> None:
    project.picture("a.png", 1)
    with pytest.raises(MediaError, match="holds something else than when it was ingested"):
        project.cache()
    assert not (project.folder / "latents").exists()
    project.ingest()
    caption(DataSet.open(project.folder), same_text("noise"), lambda text: None)
    assert project.cache()[2] == 1


def test_a_data_set_that_changed_since_is_refused(project: Project) -> None:
    place, _, _ = project.cache()
    project.picture("a.png", 1)
    project.ingest()
    with pytest.raises(RequestError, match=r"clip a-.* is gone or has changed since it was cached"):
        project.source(place)
    project.picture("a.png", 0)
    project.picture("b.png", 2)
    project.ingest()
    assert len(project.source(place).samples) == 1, "a new clip waits for the next `vgen data cache`"


def test_number_formats_do_not_share_latents(project: Project) -> None:
    place, index, _ = project.cache()
    other, narrow, written = project.cache(bfloat16=True)
    assert written == 1 and other != place
    assert index.latents_file(index.samples[0]) != narrow.latents_file(narrow.samples[0])
    assert (CacheIndex.open(place).dtype, CacheIndex.open(other).dtype) == ("float32", "bfloat16")


def test_the_footage_may_be_put_away(project: Project) -> None:
    project.mask(16)
    place, _, _ = project.cache()
    shutil.rmtree(project.footage)
    assert "weight" in project.source(place).stack([0])


def test_a_cache_of_an_earlier_version_is_refused(project: Project) -> None:
    place, _, _ = project.cache()
    content = json.loads(place.read_text())
    del content["dtype"], content["model_hash"]
    place.write_text(json.dumps(content))
    with pytest.raises(RequestError, match="was written by an earlier version: run `vgen data cache` again"):
        project.source(place)
    assert project.cache()[2] == 0


def test_models_that_share_a_vae_have_caches_of_their_own(project: Project, tmp_path: Path) -> None:
    model = project.parts.folder
    place, _, _ = project.cache()
    tuned = shutil.copytree(model, tmp_path / "tuned")
    file = tuned / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RequestError, match=r"has no cache for model .*tuned"):
        find_index(project.folder, str(tuned))
    project.parts = ModelParts.find(tuned)
    other, _, written = project.cache()
    assert written == 0 and other != place, "the same latents, in an index of its own"
    assert (find_index(project.folder, str(model)), find_index(project.folder, str(tuned))) == (place, other)
    moved = tuned.rename(tmp_path / "moved")
    assert find_index(project.folder, str(moved)) == other
