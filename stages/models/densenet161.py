"""DenseNet-161 (Huang et al., arXiv 1608.06993), the best teacher of the paper."""

ID = "densenet161"
