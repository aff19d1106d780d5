"""Few steps: distillation of a pipeline."""
