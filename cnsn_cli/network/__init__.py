"""The method of the paper: the network, its one forward pass and its loss.

network         a base-model with its sub-models, in one forward pass
  joint_pass    one pass for all models of one width
  narrow        the models of a smaller width, from blocks of the base-model's weights
  model           one model by itself
  views           the network seen as one of its models
  batch_norm      BN layers with running statistics for each model
  step_down       the conv that replaces the layers that a sub-model drops
  memory_format   how weights and features lie in memory: channels last or contiguous
loss            the loss over all models, which training minimises
folding         BN folded into the convs of a finished model
recalibration   BN statistics of a finished model, measured again
dtypes          the numbers that weights are stored in
"""
