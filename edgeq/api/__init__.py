"""Do from Python what the command line does, by the same names."""
