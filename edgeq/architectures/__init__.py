"""What a family of models looks like: one file per family, read from a config into a record."""
