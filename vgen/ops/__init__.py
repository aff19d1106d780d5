"""Fused operations, each with a plain reference: what the models call. Which are on is told by `vgen.ops.parts`."""
