"""What the arrays of a source are: keys, axes, tokens, models, and what can be proven from values."""
