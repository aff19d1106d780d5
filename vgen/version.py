"""The version, on its own so that building needs no other import."""

__version__ = "0.1.0"
