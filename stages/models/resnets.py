"""ResNet-10-T and ResNet-18 averaged: an example of an ensemble, which is only ever a teacher."""

MEMBERS = ("resnet10t", "resnet18")
