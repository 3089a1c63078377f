"""The bundled workflows as recipes: what each graph holds, how it is laid out, what its note says.

``tools/build_workflows.py`` turns a recipe into the two files users get: ``workflows/<name>.json`` (opens in the frontend)
and ``workflows/api/<name>.json`` (queued headless).
"""

from . import concepts, drag, endless, heads, paths, pictures, steer, subjects, video
from .base import Node, Recipe, link

__all__ = ["RECIPES", "Node", "Recipe", "link"]

RECIPES = (
    video.longer_video_toy,
    video.longer_video_wan,
    endless.endless_video_toy,
    endless.endless_video_wan,
    video.sparse_attention_toy,
    video.sparse_attention_wan,
    pictures.any_size_sd15,
    pictures.place_subjects_sd15,
    pictures.keep_subjects_sd15,
    pictures.keep_background_sd15,
    heads.head_guidance_sd15,
    heads.head_guidance_flux,
    heads.inspect_attention_toy,
    heads.inspect_words_toy,
    heads.inspect_attention_sd15,
    heads.find_heads_toy,
    heads.find_heads_sd15,
    heads.find_heads_prompt_match_sd15,
    heads.use_found_heads_sd15,
    paths.draw_path,
    steer.steer_object_toy,
    steer.steer_object_wan,
    subjects.same_subjects_toy,
    subjects.same_subjects_sdxl,
    subjects.subjects_from_pictures_sdxl,
    subjects.masks_on_the_spot_toy,
    subjects.masks_on_the_spot_sdxl,
    concepts.learn_concepts_toy,
    concepts.learn_concepts_sd15,
    drag.drag_object_toy,
    drag.drag_object_boxes_toy,
    drag.drag_object_sd15,
    drag.drag_object_sdxl,
)
