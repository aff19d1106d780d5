"""Preference tuning."""
