"""Architectures, one file each: teachers and students that params.yaml may name.

A file defines `ID`, a name that `timm.create_model` knows. For a net that timm has, that line is the whole file; for
one that it lacks, the file also builds it and registers it with timm under that name (`eeea_net_c2` shows how).

Two more kinds can teach, with losses that need no features. A file that defines `MEMBERS`, several such names (one may
stand there twice), is an ensemble: its nets are trained one by one, each from its own seed, and their logits averaged
after division by a temperature that is fitted on validation (`resnets`). A file that defines `CLIP` is a table of
probabilities that were computed elsewhere (`precomputed`).
"""
