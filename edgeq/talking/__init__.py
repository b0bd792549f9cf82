"""Let models write: an export in its own runtime, a checkpoint or an original in a framework."""
