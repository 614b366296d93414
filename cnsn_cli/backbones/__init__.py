"""Architectures: what a backbone is, where it may be cut, and how names become backbones."""
