"""The recipes of tiny models, a file for models that share a shape of configuration.

What calls a recipe expects is written by hand from the host's source and not by the adapters.
"""

from . import hunyuan, pictures, unets, video, wan
from .base import Facts, Recipe

__all__ = ["RECIPES", "Facts", "Recipe"]

RECIPES: dict[str, Recipe] = wan.RECIPES | hunyuan.RECIPES | video.RECIPES | pictures.RECIPES | unets.RECIPES
"""By the name tests give."""
