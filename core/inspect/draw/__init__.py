"""The pictures of a study, drawn with Pillow."""
