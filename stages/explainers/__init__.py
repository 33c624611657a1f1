"""Class-map methods, one file each.

A file defines `maps(model, images, outputs, max_stride)`: non-negative maps in the unit of the logit, not rescaled,
float32 (batch, output, height, width), that leaves the model as it found it (`grad_cam` is the example).
"""
