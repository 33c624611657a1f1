"""ResNet-18 (He et al., arXiv 1512.03385)."""

ID = "resnet18"
