"""ControlNet's preprocessors: a photograph in, a control map out."""
