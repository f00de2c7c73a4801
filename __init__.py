"""LatentWire: a text becomes a few latent vectors once; frozen language models answer from them.

Commands: ``latentwire --help``. In Python: ``latentwire.runtime.pipeline.Pipeline``.
Importing this package imports no numpy, onnxruntime or torch.
"""

__version__ = "0.1.0"
