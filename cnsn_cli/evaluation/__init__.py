"""Measuring models.

accuracy            accuracy and loss on test images
confusion_picture   which classes a model takes for which, as a picture
prediction          the classes of pictures without labels
costs               MACs, operations, parameters and bytes
  operators         what each operator of a trace costs
latency             latency and throughput on the CPU

This package writes no files, and does not know how a model was trained.
"""
