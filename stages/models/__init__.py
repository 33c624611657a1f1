"""Architectures, one file each: teachers and students that params.yaml may name.

A file defines `ID`, a name that `timm.create_model` knows. For a net that timm has, that line is the whole file; for
one that it lacks, the file also builds it and registers it with timm under that name (`eeea_net_c2` shows how).
"""
