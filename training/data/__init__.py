"""Data sets: what a training step gets, as a pure function of (seed, step)."""
