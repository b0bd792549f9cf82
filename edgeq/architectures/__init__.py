"""Say what a family of models looks like: one file per family, read from a config into a record.

Where tensors lie on disk is left to `edgeq.sources`.
"""
