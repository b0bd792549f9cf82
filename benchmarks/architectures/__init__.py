"""Kinds of models through every command and format: rows, tiny checkpoints, and the table."""
