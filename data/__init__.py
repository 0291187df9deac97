"""Pictures -> rows -> scores and tags -> captions -> latents."""
