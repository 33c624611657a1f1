"""What a layer of a net says and how each logit depends on it: what class-map methods are made of."""

from typing import Any

import torch
from torch import Tensor, nn

from stages.nets import nets


def with_gradients(
    model: nn.Module, images: Tensor, outputs: list[int], max_stride: int
) -> tuple[Tensor, list[Tensor]]:
    """The target layer's features, and of each output the gradient of its logit by them, from one forward pass.

    The layers before the target layer run without gradients, the rest backward once an output. The model is as before
    afterwards: mode, parameters, gradients, hooks.

    Args:
        model: a timm model with `feature_info`.
        images: (batch, 3, size_px, size_px), normalised.
        outputs: which logits.
        max_stride: see `target_layer`.

    Returns:
        (batch, channel, height, width), and as many such as there are outputs, in their order.

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
        logits = model(images)  # (batch, output)
        slopes = [torch.autograd.grad(logits[:, c].sum(), leaves[0], retain_graph=True)[0] for c in outputs]
    finally:
        torch.set_grad_enabled(had_grad)
        hook.remove()
        for module, mode in modes:
            module.training = mode
    features, *gradients = (nets.as_grid(value, channels, name, model) for value in (leaves[0].detach(), *slopes))
    return features, gradients


def target_layer(model: nn.Module, max_stride: int) -> tuple[str, int]:
    """Name and channels of the deepest feature map of a timm model whose stride, in input pixels, is at most this.

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
