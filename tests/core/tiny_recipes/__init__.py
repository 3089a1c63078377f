"""The recipes of tiny models, a file for models that share a shape of configuration.

What calls a recipe expects is written by hand from the host's source and not by the adapters.
"""

from . import hunyuan, later_pictures, later_video, more_pictures, pictures, unets, video, wan, wan_driven
from .base import Facts, Recipe

__all__ = ["RECIPES", "Facts", "Recipe"]

RECIPES: dict[str, Recipe] = (
    wan.RECIPES | wan_driven.RECIPES | hunyuan.RECIPES | video.RECIPES | later_video.RECIPES | pictures.RECIPES | more_pictures.RECIPES | later_pictures.RECIPES | unets.RECIPES
)
"""By the name tests give."""
