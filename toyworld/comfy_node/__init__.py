"""ComfyUI custom node that loads the toy worlds' files for which the host's own loaders have no sizes.

Link or copy this folder into `ComfyUI/custom_nodes`. "Load Toy World Text Encoder" takes the text encoders (`models/text_encoders`: toy_umt5,
scenes_..._text), "Load Toy World UNet" the SD1.5 U-Net (`models/diffusion_models`: scenes_sd15). What they return is an ordinary CLIP and an
ordinary MODEL of the host's classes: CLIPTextEncode, prompt weights and every sampler take them. The toy Wan and SD3 models and all VAEs go through
UNETLoader and VAELoader. The folder is self-contained on purpose, and Attention Loom itself never loads it.
"""

from .text import load_text_encoder
from .unet import load_unet


class ToyWorldTextEncoder:
    """V1 node: a file name in, a CLIP out."""

    CATEGORY = "Attention Loom/toy world"
    DESCRIPTION = "Loads a small text encoder of a toy world, which ComfyUI's own CLIPLoader cannot size."
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        import folder_paths

        names = folder_paths.get_filename_list("text_encoders")
        tip = "A file in models/text_encoders written by the toy world's trainer: toy_umt5.safetensors or one whose name ends in _text."
        return {"required": {"clip_name": (names, {"tooltip": tip})}}

    def load(self, clip_name: str):
        import folder_paths

        return (load_text_encoder(folder_paths.get_full_path_or_raise("text_encoders", clip_name), folder_paths.get_folder_paths("embeddings")),)


class ToyWorldUNet:
    """V1 node: a file name in, a MODEL out."""

    CATEGORY = "Attention Loom/toy world"
    DESCRIPTION = "Loads the small SD1.5 U-Net of the second toy world, which ComfyUI's own UNETLoader does not recognise."
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        import folder_paths

        names = folder_paths.get_filename_list("diffusion_models")
        return {"required": {"unet_name": (names, {"tooltip": "A file in models/diffusion_models written by the toy world's trainer: scenes_sd15.safetensors."})}}

    def load(self, unet_name: str):
        import folder_paths

        return (load_unet(folder_paths.get_full_path_or_raise("diffusion_models", unet_name)),)


NODE_CLASS_MAPPINGS = {"ToyWorldTextEncoder": ToyWorldTextEncoder, "ToyWorldUNet": ToyWorldUNet}
NODE_DISPLAY_NAME_MAPPINGS = {"ToyWorldTextEncoder": "Load Toy World Text Encoder", "ToyWorldUNet": "Load Toy World UNet"}
