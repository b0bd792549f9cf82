"""Show runs and comparisons as pages of HTML that stand alone."""
