"""Latents -> checkpoint -> export."""
