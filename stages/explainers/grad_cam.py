"""Grad-CAM (Selvaraju et al., arXiv 1610.02391) of several findings from one forward pass.

`L_c = sum_k a_k A_k`, where `A_k` are the channels of the target layer's output and `a_k` is the mean over space
of `d logit_c / d A_k`; the paper's ReLU is left to who reads the map. The grad-cam library gives the same map up to its
ReLU and min-max (`tests/test_explain.py` holds the two together), but runs the whole net once a finding, rescales every
map to [0, 1], so that "no evidence" and "strong evidence" look alike, and leaves the model with filled gradients: hence
these lines.
"""

import numpy as np
import torch
from torch import Tensor, nn

from stages.nets import activations


def maps(model: nn.Module, images: Tensor, outputs: list[int], max_stride: int) -> np.ndarray:
    """Class maps on the target layer's grid (see `stages.explainers`)."""
    features, gradients = activations.with_gradients(model, images, outputs, max_stride)
    weights = torch.stack([gradient.mean(dim=(2, 3)) for gradient in gradients], dim=1)  # (batch, output, channel)
    return torch.einsum("bfk,bkhw->bfhw", weights, features).float().cpu().numpy()
