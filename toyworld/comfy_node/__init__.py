"""ComfyUI custom node that loads the toy text encoder of the shapes world.

Link or copy this folder into `ComfyUI/custom_nodes` and put `toy_umt5.safetensors` into `models/text_encoders`. ComfyUI's own CLIPLoader
always builds the full-size UMT5-XXL; this node gives the loader the small sizes that the file itself states. Nothing else is special about
the CLIP it returns: CLIPTextEncode, prompt weights and every sampler take it. The folder is self-contained on purpose.
"""

import json


def load_text_encoder(path: str):
    """The CLIP object for a toy text encoder file; a ValueError in one sentence for any other file."""
    import comfy.sd
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        config, length = json.loads(metadata["te_config"]), int(metadata["te_length"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a toy text encoder: expected a safetensors file written by the shapes world's trainer ({error!r}).") from error
    clip = comfy.sd.load_clip([path], clip_type=comfy.sd.CLIPType.WAN, model_options={"umt5xxl_model_config": config})
    # Wan pads prompts to 512 tokens of zeros; this world was trained with a few.
    clip.set_tokenizer_option("umt5xxl_min_length", length)
    return clip


class ToyWorldTextEncoder:
    """V1 node: a file name in, a CLIP out."""

    CATEGORY = "Attention Loom/toy world"
    DESCRIPTION = "Loads the small text encoder of the shapes world, which ComfyUI's own CLIPLoader cannot size."
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        import folder_paths

        names = folder_paths.get_filename_list("text_encoders")
        return {"required": {"clip_name": (names, {"tooltip": "A file in models/text_encoders written by the toy world's trainer: toy_umt5.safetensors."})}}

    def load(self, clip_name: str):
        import folder_paths

        return (load_text_encoder(folder_paths.get_full_path_or_raise("text_encoders", clip_name)),)


NODE_CLASS_MAPPINGS = {"ToyWorldTextEncoder": ToyWorldTextEncoder}
NODE_DISPLAY_NAME_MAPPINGS = {"ToyWorldTextEncoder": "Load Toy World Text Encoder"}
