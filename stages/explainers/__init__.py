"""Class-map methods, one file each.

A file defines `maps(model: nn.Module, images: Tensor, outputs: list[int], max_stride: int) -> np.ndarray`. `model` is a
timm model, `images` its normalised input (batch, 3, size_px, size_px), `outputs` which logits are asked for, and
`max_stride` (of params.yaml) how many input pixels a place of a map may be wide at most. It returns a map of each film
and output, float32 (batch, output, height, width), in the order asked for:

    finite                    0 where nothing speaks for the finding, negative where something speaks against it; what
                              scores and draws maps leaves that out
    in the unit of the logit  not rescaled: a net whose logits are all twice as large has maps twice as large, and
                              one whose logits depend on nothing has zeros; a file whose method has no unit says
                              `IS_RELATIVE = True`
    of the finding            one of another output is another map; a method that asks no logit says
                              `KNOWS_FINDINGS = False`
    film by film              a film's map does not depend on the others of the batch
    the model as it was       mode, parameters, buffers, gradients and hooks, also after an error

It raises ValueError on a net that it does not fit. `nets/activations.py` has the target layer's features and the
gradients of logits by them, from one forward pass, which leaves the model alone: what is left is the formula
(`grad_cam` is the example, `layer_cam` one with the grad-cam package's). `tests/test_explainers.py` holds every file of
this folder to these rules.
"""
