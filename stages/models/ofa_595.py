"""OFA-595, a teacher of the paper: the Once-for-All sub-network with 595 M multiply-adds of its authors' list.

Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", arXiv 1908.09791.
"""

from typing import Any

from timm.models import register_model
from timm.models._registry import generate_default_cfgs
from timm.models.mobilenetv3 import MobileNetV3

from stages.nets.once_for_all import Stage, default_cfg, once_for_all

ID = "ofa_595"
STAGES = (
    Stage(32, ((3, 3), (5, 4), (3, 3)), stride=2, relu=True, excite=False),
    Stage(48, ((5, 4), (5, 4), (3, 6), (5, 3)), stride=2, relu=True, excite=True),
    Stage(96, ((7, 6), (5, 6), (3, 3), (5, 4)), stride=2, relu=False, excite=False),
    Stage(136, ((3, 6), (5, 6), (7, 6), (3, 4)), stride=1, relu=False, excite=True),
    Stage(192, ((3, 6), (3, 6), (5, 6), (3, 3)), stride=2, relu=False, excite=True),
)

default_cfgs = generate_default_cfgs({ID: default_cfg()})


@register_model
def ofa_595(pretrained: bool = False, **kwargs: Any) -> MobileNetV3:
    """OFA-595 for `timm.create_model`."""
    return once_for_all(ID, stem=24, stages=STAGES, last=1152, features=1536, pretrained=pretrained, **kwargs)
