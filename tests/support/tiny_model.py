"""The smallest model on which commands are tested."""

TINY_VLM = """
[vlm]
min_picture_pixels = 64
max_picture_pixels = 64
[vlm.scratch]
vocabulary = 300
hidden_size = 16
heads = 2
layers = 1
intermediate_size = 16
vision_hidden_size = 16
vision_heads = 2
vision_layers = 1
vision_intermediate_size = 16
patch_size = 4
"""
"""Section ``[vlm]`` of a configuration file."""
