"""The version of cnsn, so that `files` can record it without importing cnsn_cli/__init__.py."""

__version__ = "0.1.0"
