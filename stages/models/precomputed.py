"""A table of probabilities in the place of a net: a teacher that was trained elsewhere and is not at hand.

`checkpoint` of its entry in params.yaml is a csv with the image's name in the first column and a column a finding, see
`nets/probability_table.py`. It can teach with losses of logits; it has no cost and no class maps, and a row serves
every view of its film. A second table is a copy of this file under another name.
"""

COLUMNS: dict[str, str] = {}  # column of the csv -> finding, for columns that are not named like their finding
CLIP = 1.0e-6  # probabilities are moved into [CLIP, 1 - CLIP], so that 0 and 1 have a logit
