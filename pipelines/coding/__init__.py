"""Between pixels and latents."""
