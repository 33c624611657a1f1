"""ResNet-18 (He et al., arXiv 1512.03385), the teacher of the embedded default."""

ID = "resnet18"
