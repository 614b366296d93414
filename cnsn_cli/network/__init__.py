"""The method of the paper: the network, its one forward pass and its loss.

    network         a base-model with its sub-models, in one forward pass
      model           one model by itself
      views           the network seen as one of its models
      batch_norm      layers with statistics per model
      step_down       what stands for the convs that a sub-model drops
      memory_format   how weights and features lie in memory
    loss            what is minimised
    folding, recalibration, dtypes    what is done to a finished model

None of these modules knows files, training runs or commands.
"""
