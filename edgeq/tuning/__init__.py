"""Tune what was solved against what the original model predicts: floats, and a few of the codes."""
