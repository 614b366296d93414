"""Data sets and pictures: from files to batches of pixels."""
