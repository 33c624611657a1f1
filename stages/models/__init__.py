"""Architectures, one file each: teachers and students that params.yaml may name.

A file defines `ID`, a name that `timm.create_model` knows. For a net that timm has, that line is the whole file; for
one that it lacks, the file also builds it and registers it with timm under that name (`eeea_net_c2` shows how).

Two more kinds can teach, with losses that need no features. A file that defines `MEMBERS`, several such names (one may
stand there twice), is an ensemble: its nets are trained one by one, each from its own seed, and their logits averaged
after division by a temperature that is fitted on validation (`resnets`). A file that defines `CLIP` is a table of
probabilities that were computed elsewhere (`precomputed`).

Those that ship:

* `eeea_net_c2`: the paper's student, and one of its teachers (Termritthikun et al., arXiv 2108.06156)
* `densenet161`, `visformer_s`, `autoformer_v2_t`, `ofa_595`: the paper's other teachers (arXiv 1608.06993,
  2104.12533, 2111.14725, 1908.09791)
* `resnet10t`, `resnet18`: small teachers for 64-px films on a CPU (arXiv 1512.03385)
* `resnets`: both averaged: trained one by one, logits over temperatures fitted on validation (Guo et al., arXiv
  1706.04599)
* `precomputed`: a table of probabilities: no cost, no maps, and a row serves every view of its film
"""
