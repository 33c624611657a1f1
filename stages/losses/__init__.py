"""Distillation losses, one file each.

A file defines `NEEDS` (`"logits"`: the teacher's cached logits are enough, and it never runs again; `"features"`: it
runs beside the student in every step), a pydantic class `Settings` with the keys of `losses.<file name>` in
params.yaml, and `terms(given: Signals, settings: Settings) -> dict[str, Tensor]`: named scalar terms, already weighted,
whose sum is the loss. The hard labels' term is called `task`; every other one is least when the student equals the
teacher. Every term is logged, and how strong its gradient is beside the task's. `learning/objectives.py` has `Signals`
(`student` and `teacher`: their logits, `target`, `annotated`: where a target counts, `student_features` and
`teacher_features`) and the means over annotated elements. What `terms` returns is checked in every step: scalars that
depend on the student, under names that the learning curve has not anyway (`loss`, `lr`, ...). The module's docstring
gives formula, paper, and the value when the student equals the teacher, and ends with the entry for params.yaml, which
is what the tests run every loss with.

A loss of features may have a part that learns, an adapter: `adapter(student: int, teacher: int) -> nn.Module` makes it
for so many channels of the student's and of the teacher's deepest maps, and `terms` takes it as a third argument,
`adapter`. It is seeded, trains under the student's optimizer and clipping, is kept in checkpoints, and is dropped when
the training ends. `feature_mse` has one.

Those that ship, by what they teach:

* `paper`: softened outputs (by sigmoid or softmax), squared; task focal (Termritthikun et al., arXiv 2305.06244)
* `sigmoid_kd`: each finding's softened probability (Hinton et al., arXiv 1503.02531, with a sigmoid)
* `mld`: each finding's probability, summed over findings (Yang et al., ICCV 2023)
* `logit_mse`: logits, squared (Ba & Caruana, NIPS 2014)
* `softmax_kl`: which finding is likelier than which (Hinton et al., arXiv 1503.02531)
* `dist_corr`: order of findings in a film, and of films in a finding (Huang et al., NeurIPS 2022)
* `feature_mse`: the last feature maps through a trained projection, and `sigmoid_kd` (Romero et al., ICLR 2015)
* `attention_transfer`: where to look, and `sigmoid_kd` (Zagoruyko & Komodakis, ICLR 2017)
* `rkd`: which films are alike, and `sigmoid_kd` (Park et al., CVPR 2019)
* `cam_transfer`: where a present finding is, and `sigmoid_kd` (Zhou et al., CVPR 2016; Guo et al., CVPR 2023)

The last four read the teacher's features. `loss_sums` of params.yaml adds losses up as they are: nothing is to be done
for it in their files.
"""
