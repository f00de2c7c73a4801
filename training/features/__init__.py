"""Optional parts of a model, one module each, off unless the config names them."""
