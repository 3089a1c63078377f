"""Masks of concepts from a model's own attention, and learning those concepts from one picture (AttenCraft, arXiv 2405.17965)."""
