"""Trains the demo checkpoint: a whole SD 1.x model, small enough for two CPU cores."""
