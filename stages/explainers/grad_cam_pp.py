"""Grad-CAM++ (Chattopadhyay et al., arXiv 1710.11063): places whose gradient is positive weigh by its higher powers.

The weights are the grad-cam package's, of features and gradients that leave the model alone (see `grad_cam`). They are
no linear function of the gradient, so that a map has a scale of its own.
"""

import numpy as np
from pytorch_grad_cam import GradCAMPlusPlus
from torch import Tensor, nn

from stages.nets import activations

IS_RELATIVE = True


def maps(model: nn.Module, images: Tensor, outputs: list[int], max_stride: int) -> np.ndarray:
    """Class maps on the target layer's grid (see `stages.explainers`)."""
    features, gradients = activations.with_gradients(model, images, outputs, max_stride)
    values = features.float().cpu().numpy()
    found = []
    for gradient in gradients:
        weights = GradCAMPlusPlus.get_cam_weights(None, None, None, None, values, gradient.float().cpu().numpy())
        found.append(np.einsum("bk,bkhw->bhw", weights, values))
    return np.stack(found, axis=1).astype(np.float32)
