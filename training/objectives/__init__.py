"""Objectives: what a training step computes; the loop knows none of them by name."""
