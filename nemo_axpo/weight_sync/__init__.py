"""The actor's weights on their way into running engines: buckets of named tensors over memory, network or disk.

``layout``, ``receiver`` and the sources import torch and the standard library alone, for use inside inference workers.
"""
