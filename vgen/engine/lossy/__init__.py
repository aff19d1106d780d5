"""Opt-in ways to a faster or smaller model whose clip differs from the exact one."""
