"""The version of cnsn, alone, so that files can tell it without importing the package's face."""

__version__ = "0.1.0"
