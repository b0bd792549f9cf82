"""A format as somebody else would add it: this folder, and one line in the table of formats."""
