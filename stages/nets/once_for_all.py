"""Once-for-All sub-networks of the MobileNetV3 space, for architectures that timm lacks, in its block notation.

Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", arXiv 1908.09791.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers.helpers import make_divisible
from timm.models import build_model_with_cfg
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from stages.nets.nets import MEAN, STD


@dataclass(frozen=True)
class Stage:
    """Inverted-residual blocks of one width.

    Attributes:
        channels: output width.
        blocks: (kernel, expansion of the block's input channels) of each block.
        stride: of the first block.
        relu: ReLU, else hard-swish.
        excite: squeeze-and-excitation of a quarter of the expanded width.
    """

    channels: int
    blocks: tuple[tuple[int, int], ...]
    stride: int
    relu: bool
    excite: bool

    def notation(self) -> list[str]:
        """The blocks as timm's decoder takes them."""
        suffix = ("_se0.25" if self.excite else "") + ("_nre" if self.relu else "")
        return [
            f"ir_r1_k{kernel}_s{self.stride if position == 0 else 1}_e{expansion}_c{self.channels}{suffix}"
            for position, (kernel, expansion) in enumerate(self.blocks)
        ]


def once_for_all(
    name: str, stem: int, stages: tuple[Stage, ...], last: int, features: int, **kwargs: Any
) -> MobileNetV3:
    """A timm model of these stages.

    Args:
        name: as registered with timm.
        stem: channels of the stem and of the depthwise-separable block after it.
        stages: the inverted-residual stages.
        last: channels of the 1x1 convolution before the pool.
        features: channels after the pool, which the classifier reads.
        kwargs: what `timm.create_model` hands on.
    """
    notation = [[f"ds_r1_k3_s1_e1_c{stem}_nre"], *(stage.notation() for stage in stages), [f"cn_r1_k1_s1_c{last}"]]
    blocks = decode_arch_def(notation)  # type: ignore[no-untyped-call]  # timm's, without types
    divisible = partial(make_divisible, divisor=8)
    model: MobileNetV3 = build_model_with_cfg(
        MobileNetV3,
        name,
        kwargs.pop("pretrained", False),
        block_args=blocks,
        stem_size=stem,
        fix_stem=True,
        num_features=features,
        head_bias=False,
        act_layer=nn.Hardswish,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-5, momentum=0.1),
        se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=divisible),
        pretrained_strict=True,
        kwargs_filter=("features_only",),
        **kwargs,
    )
    return model


def default_cfg() -> dict[str, Any]:
    """timm's description of weights for a net built here; the authors' are loaded with `checkpoint`."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
        "first_conv": "conv_stem",
        "classifier": "classifier",
    }
