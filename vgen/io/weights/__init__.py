"""Weight files: safetensors, single files in the original layout, and LoRA."""
