"""vgen's classes as diffusers sees them."""

from __future__ import annotations

import subprocess
import sys

import diffusers
import pytest
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.pipelines import pipeline_loading_utils as loading

import vgen
from vgen.models import CausalVideoVAE, VideoDiT


def test_components_are_saved_under_vgen_and_found_again(dit, vae):
    for component, cls in ((dit, VideoDiT), (vae, CausalVideoVAE)):
        library, name = loading._fetch_class_library_tuple(component)
        assert (library, name) == ("vgen", cls.__name__)
        found, candidates = loading.get_class_obj_and_candidates(
            library, name, loading.LOADABLE_CLASSES[library], diffusers.pipelines, is_pipeline_module=False
        )
        assert found is cls
        assert issubclass(found, candidates["ModelMixin"])
        assert getattr(diffusers, name) is cls


def test_single_files_are_read_as_those_of_the_original_classes():
    for ours, original in (("VideoDiT", "LTXVideoTransformer3DModel"), ("CausalVideoVAE", "AutoencoderKLLTXVideo")):
        assert SINGLE_FILE_LOADABLE_CLASSES[ours] is SINGLE_FILE_LOADABLE_CLASSES[original]


def test_public_names():
    assert vgen.VideoDiT is VideoDiT and vgen.CausalVideoVAE is CausalVideoVAE
    assert set(vgen.__all__) <= set(dir(vgen))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vgen.no_such_name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vgen.models.no_such_name


def test_importing_vgen_imports_nothing_heavy():
    program = "import sys, vgen, vgen.models; print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
