"""Ordinary networks taken to pieces, so that they become backbones."""
