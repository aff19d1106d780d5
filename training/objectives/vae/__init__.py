"""The VAE: reconstruction, then a sharpened decoder."""
