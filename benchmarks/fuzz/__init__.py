"""Mutate the input of every reader of edgeq, and look for anything but one clear line."""
