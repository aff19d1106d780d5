"""Pipelines: a task is a choice of known tokens; the denoising loop lives in `base.py`."""

if __name__ != "vgen.pipelines":
    raise ImportError("import this package as vgen.pipelines, not as pipelines")
