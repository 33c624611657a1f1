"""ResNet-10-T: a small ResNet with a deep, tiered stem; the default teacher, for 64-px films on a CPU."""

ID = "resnet10t"
