"""From a trained network to files for devices.

detach        one model of a network as a file of its own
  budget      choosing a model by limits
  copying     a detached model by copying bytes, without torch
  changes     what is recomputed, as a value
  recompute   a detached model whose tensors change: BN statistics, folded BN, two-byte weights
export        ONNX and torch.export, checked against PyTorch
  int8        ONNX with weights and activations in int8
comparison    what a smaller file saves and costs
card          model cards for hubs

This package does not know how a network was trained.
"""
