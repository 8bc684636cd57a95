"""A double of Transformer Engine for machines without CUDA: parameters and their names, no computation.

Megatron-Bridge builds its models of megatron's wrappers around Transformer Engine. To convert weights and write a checkpoint
they need no more than what is here; a forward pass is not possible.
"""

from transformer_engine import common, pytorch

__all__ = ["common", "pytorch"]
__version__ = "2.2.0"
