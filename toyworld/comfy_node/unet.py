"""The toy SD1.5 U-Net, as a MODEL of the host's own classes.

The host recognises SD1.5 by its 320 channels and 768 channels of text (comfy.supported_models), so its UNETLoader cannot take a smaller one.
Here the host's configuration class gets the sizes that the file states. Nothing is registered with the host: no other file loads differently.
"""

from . import files

WHAT = "a toy SD1.5 U-Net"


def load_unet(path: str):
    """The MODEL for a file such as `scenes_sd15.safetensors`; a ValueError in one sentence for any other file."""
    import comfy.model_management
    import comfy.model_patcher

    stated, tensors = files.read(path, "toyworld", WHAT)
    sizes = stated.get("model")
    if "input_blocks.0.0.weight" not in tensors or not isinstance(sizes, dict) or "model_channels" not in sizes:
        raise ValueError(f"{path} is not {WHAT}; toy models of other kinds (Wan, SD3) are loaded by ComfyUI's own UNETLoader.")
    if (prediction := stated.get("prediction", "eps")) not in ("eps", "x0"):
        raise ValueError(f"{path} states the prediction {str(prediction)[:40]!r}; {WHAT} predicts 'eps' or 'x0'.")
    model = _build(path, sizes, tensors)
    if prediction == "x0":
        model.model_sampling = _predicts_the_picture(model.model_config)
    files.check_tensors(path, WHAT, tensors, model.diffusion_model.state_dict())
    model = model.to(comfy.model_management.unet_offload_device())
    model.load_model_weights(tensors, "")
    return comfy.model_patcher.ModelPatcher(model, load_device=comfy.model_management.get_torch_device(), offload_device=comfy.model_management.unet_offload_device())


def _build(path: str, sizes: dict, tensors: dict):
    """The host's model object without weights."""
    import comfy.model_management
    import comfy.utils

    config = _configuration()(sizes)
    parameters = comfy.utils.calculate_parameters(tensors)
    dtype = comfy.model_management.unet_dtype(model_params=parameters, supported_dtypes=list(config.supported_inference_dtypes), weight_dtype=comfy.utils.weight_dtype(tensors))
    device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    try:
        return config.get_model(tensors, "")
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # sizes that make no U-Net
        raise ValueError(f"{path} is not {WHAT} of the sizes it states ({' '.join(str(error).split())[:200]}).") from error


def _configuration() -> type:
    """The host's SD1.5 configuration with the sizes of a file and the sixteen latent channels of SD3's VAE."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.supported_models

    class ToySD15(comfy.supported_models.SD15):
        unet_extra_config = {}  # heads are stated by the file
        latent_format = comfy.latent_formats.SD3

        def model_type(self, state_dict, prefix=""):
            return comfy.model_base.ModelType.EPS

        def inpaint_model(self) -> bool:
            return False  # the host takes more than four input channels for an inpainting model

    return ToySD15


def _predicts_the_picture(config):
    """SD1.5's noise levels for a model that predicts the picture, as the host's node ModelSamplingDiscrete sets it with "x0"."""
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0):
        pass

    return Sampling(config)
