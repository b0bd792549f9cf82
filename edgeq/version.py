"""The version of edgeq."""

__version__ = "0.1.0"
