"""EigenCAM (Muhammad & Yeasin, arXiv 2008.00299): the first principal component of the layer's features.

It asks no logit and so knows no finding: all outputs have the same map, as a control of what the features alone point
at. The projection is the grad-cam package's, with the sign that makes its largest value positive.
"""

import numpy as np
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction
from torch import Tensor, nn

from stages.nets import activations

IS_RELATIVE = True
KNOWS_FINDINGS = False


def maps(model: nn.Module, images: Tensor, outputs: list[int], max_stride: int) -> np.ndarray:
    """The same map for each output, on the target layer's grid (see `stages.explainers`)."""
    features, _ = activations.with_gradients(model, images, outputs, max_stride)
    found = get_2d_projection_with_sign_correction(features.float().cpu().numpy())
    return np.repeat(found[:, None], len(outputs), axis=1)
