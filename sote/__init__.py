"""Sote: pictures -> rows -> scores and tags -> captions -> latents -> checkpoint -> images."""

__version__ = "0.1.0"
