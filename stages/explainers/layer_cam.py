"""LayerCAM (Jiang et al., IEEE TIP 2021): each place of each channel weighs by its own positive gradient.

The formula is the grad-cam package's, of features and gradients that leave the model alone (see `grad_cam`).
"""

import numpy as np
from pytorch_grad_cam import LayerCAM
from torch import Tensor, nn

from stages.nets import activations


def maps(model: nn.Module, images: Tensor, outputs: list[int], max_stride: int) -> np.ndarray:
    """Class maps on the target layer's grid (see `stages.explainers`)."""
    features, gradients = activations.with_gradients(model, images, outputs, max_stride)
    values = features.float().cpu().numpy()
    found = [
        LayerCAM.get_cam_image(None, None, None, None, values, gradient.float().cpu().numpy(), eigen_smooth=False)
        for gradient in gradients
    ]
    return np.stack(found, axis=1).astype(np.float32)
