"""Visformer-S (Chen et al., arXiv 2104.12533), a teacher of the paper."""

ID = "visformer_small"
