"""Several trained networks as one: by the mean of their scores, or by the mean of their weights.

Means of scores need nothing but tables of predictions; means of weights (Izmailov et al. 2018,
"Averaging weights leads to wider optima and better generalization") cost no more than one network
to run, and mean something where the networks come from one training or one start.
"""
