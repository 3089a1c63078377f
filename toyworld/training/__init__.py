"""Training of the second toy world's checkpoints: one file per model, one loop for all, one command.

    python -m attention_loom.toyworld.training wan --steps 9000        # also: forcing, sd3, sd15, grounding, picture_vae, wan_vae

`text` holds the text encoders that are learned together with a model, `words` the tokens of a caption, `pools` and `crops` the rendered training
data, `loop` the optimisers and the resume file. Every model is the host's own class; nothing here re-implements one.
"""
