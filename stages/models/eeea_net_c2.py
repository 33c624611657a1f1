"""EEEA-Net-C2, the paper's student: 4.7 M parameters and 0.3 G multiply-adds at 224 px.

Termritthikun et al., "EEEA-Net: An Early Exit Evolutionary Neural Architecture Search", arXiv 2108.06156. The authors'
ImageNet weights are `eeea-c2.pt` of release 0.0.1 of github.com/jitdee-ai/darmo; `checkpoint` loads them by order.
"""

from typing import Any

from timm.models import register_model
from timm.models._registry import generate_default_cfgs
from timm.models.mobilenetv3 import MobileNetV3

from stages.nets.once_for_all import Stage, default_cfg, once_for_all

ID = "eeea_net_c2"
STAGES = (
    Stage(24, ((3, 3), (5, 4), (3, 3)), stride=2, relu=True, excite=False),
    Stage(40, ((7, 4), (3, 3), (7, 3)), stride=2, relu=True, excite=True),
    Stage(80, ((5, 6), (7, 6), (5, 3), (3, 3)), stride=2, relu=False, excite=False),
    Stage(112, ((7, 6), (5, 4), (3, 3), (3, 3)), stride=1, relu=False, excite=True),
    Stage(160, ((5, 6), (3, 6), (5, 6), (7, 3)), stride=2, relu=False, excite=True),
)

default_cfgs = generate_default_cfgs({ID: default_cfg()})


@register_model
def eeea_net_c2(pretrained: bool = False, **kwargs: Any) -> MobileNetV3:
    """EEEA-Net-C2 for `timm.create_model`."""
    return once_for_all(ID, stem=16, stages=STAGES, last=960, features=1280, pretrained=pretrained, **kwargs)
