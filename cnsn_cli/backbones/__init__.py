"""Architectures: what a backbone is, where it may be cut, and how names become backbones.

backbone        the contract of an architecture: units and a head
detach_points   where a backbone may be cut, and why not elsewhere
registry        from strings to architectures
  arch_string   the grammar of architecture strings
  architecture  an architecture as a value, which builds backbones
  plugins       code that the user names with --plugin
meta            networks without weights, for their shapes
tracing         ordinary networks taken to pieces

This package does not know sub-models, and does not read image files.
"""
