"""Samplers of the pack: they decide what the model is asked, not what its attention does."""
