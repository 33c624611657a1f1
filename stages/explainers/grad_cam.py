"""Grad-CAM (Selvaraju et al., arXiv 1610.02391) of several findings from one forward pass.

`L_c = ReLU(sum_k a_k A_k)`, where `A_k` are the channels of the target layer's output and `a_k` is the mean over space
of `d logit_c / d A_k`. The grad-cam library gives the same map up to its min-max (`tests/test_explain.py` holds the two
together), but runs the whole net once a finding, rescales every map to [0, 1], so that "no evidence" and "strong
evidence" look alike, and leaves the model with filled gradients: hence these lines.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.core import models


def maps(model: nn.Module, images: Tensor, outputs: list[int], max_stride: int) -> np.ndarray:
    """Class maps in units of the logit, zero where nothing speaks for the finding.

    The layers before the target layer run without gradients, the rest backward once a finding. The model is as before
    afterwards: mode, parameters, gradients, hooks.

    Args:
        model: a timm model with `feature_info`.
        images: (batch, 3, size_px, size_px), normalised.
        outputs: which logits.
        max_stride: the target layer is the deepest one whose stride, in input pixels, is at most this.

    Returns:
        float32 (batch, output, height, width) on the target layer's grid.

    Raises:
        ValueError: no layer has such a stride, or the layer has no grid.
    """
    name, channels = target_layer(model, max_stride)
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[-1].clone()  # a later in-place ReLU must not reach what is stored

    modes, had_grad = [(module, module.training) for module in model.modules()], torch.is_grad_enabled()
    hook = model.get_submodule(name).register_forward_hook(cut)
    try:
        model.eval()
        torch.set_grad_enabled(False)
        logits = model(images)  # (batch, finding)
        slopes = [torch.autograd.grad(logits[:, c].sum(), leaves[0], retain_graph=True)[0] for c in outputs]
    finally:
        torch.set_grad_enabled(had_grad)
        hook.remove()
        for module, mode in modes:
            module.training = mode
    features = models.as_grid(leaves[0].detach(), channels, name, model)  # (batch, channel, height, width)
    weights = torch.stack([models.as_grid(slope, channels, name, model).mean(dim=(2, 3)) for slope in slopes], dim=1)
    return torch.einsum("bfk,bkhw->bfhw", weights, features).relu().float().cpu().numpy()


def target_layer(model: nn.Module, max_stride: int) -> tuple[str, int]:
    """Name and channels of the deepest feature map of a timm model whose stride is at most `max_stride`.

    A plain transformer's last block has no gradient at its patch tokens' output when the class token is read, so the
    block before it is taken, whose output is what the last block reads.

    Raises:
        ValueError: every feature map is coarser.
    """
    layers: list[dict[str, Any]] = list(model.feature_info)  # type: ignore[arg-type]  # timm adds it, nn.Module hides it
    fine = [layer for layer in layers if layer["reduction"] <= max_stride]
    if not fine:
        strides = ", ".join(str(layer["reduction"]) for layer in layers)
        raise ValueError(f"max_stride must reach one of the model's ({strides}), got {max_stride} (explain.max_stride)")
    is_plain_transformer = hasattr(model, "num_prefix_tokens") and len(fine) > 1
    chosen = fine[-2 if is_plain_transformer else -1]
    return chosen["module"], chosen["num_chs"]
