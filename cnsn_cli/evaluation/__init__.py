"""Measuring models: accuracy and predictions, MACs and bytes, latency."""
