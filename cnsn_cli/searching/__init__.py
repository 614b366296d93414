"""Finds the sub-models to train for given budgets of MACs, in a fraction of a training run.

    grid        depths x widths: which of them could serve a budget
    search      one short training run with all of these candidates
    ranking     BN statistics measured again, accuracies, the best candidate of each budget
    picture     accuracy against MACs
    inside      the same for a network that is trained already

`commands` calls this package, which calls `training` and `evaluation`.
"""
