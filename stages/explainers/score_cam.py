"""Score-CAM (Wang et al., arXiv 1910.01279): a channel weighs by the logit of the film that it masks.

A channel of the target layer, enlarged and scaled to 0 to 1, is a mask over the film; weights are the softmax over
channels of the masked films' logits, as in the paper and the grad-cam package. The package's own class asks for one
finding at a time, prints a bar for each film and leaves the model in another mode; here all findings share the masked
films' passes. It takes a pass a channel: minutes where `grad_cam` takes seconds.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.nets import activations

IS_RELATIVE = True
BATCH = 64  # masked films a pass
TINY = 1e-8


def maps(model: nn.Module, images: Tensor, outputs: list[int], max_stride: int) -> np.ndarray:
    """Class maps on the target layer's grid (see `stages.explainers`)."""
    features, _ = activations.with_gradients(model, images, outputs, max_stride)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            found = [_of_film(model, film, of_film, outputs) for film, of_film in zip(images, features, strict=True)]
    finally:
        for module, mode in modes:
            module.training = mode
    return torch.stack(found).float().cpu().numpy()


def _of_film(model: nn.Module, film: Tensor, features: Tensor, outputs: list[int]) -> Tensor:
    """The maps of one film: (output, height, width)."""
    enlarged = functional.interpolate(features[None], film.shape[-2:], mode="bilinear", align_corners=True)[0]
    low, high = enlarged.amin(dim=(1, 2), keepdim=True), enlarged.amax(dim=(1, 2), keepdim=True)
    masks = (enlarged - low) / (high - low + TINY)
    logits = torch.cat([model(film * part[:, None]) for part in torch.split(masks, BATCH)])  # (channel, output)
    weights = logits[:, outputs].softmax(dim=0)
    return torch.einsum("kf,khw->fhw", weights, features)
