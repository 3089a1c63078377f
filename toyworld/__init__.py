"""The toy world: a world of moving shapes whose truth is known, and tiny checkpoints of it in the real Wan file formats.

Evidence for the pack's methods is measured here, because nothing about picture quality can be shown on random weights. The pack itself
(nodes, core, kernels) never imports this package. `python -m attention_loom.toyworld.train` and its sisters reproduce the checkpoints.
"""
