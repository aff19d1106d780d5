"""Losses and image measures, each a plain function of tensors."""
