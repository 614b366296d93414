"""Measuring models.

accuracy     accuracy and loss on test images
prediction   the classes of pictures without labels
costs        MACs, operations, parameters and bytes
latency      latency and throughput on the CPU

This package writes no files, and does not know how a model was trained.
"""
