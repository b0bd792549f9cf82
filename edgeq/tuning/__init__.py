"""Tune what was solved against what the original model predicts; codes stay as they are."""
