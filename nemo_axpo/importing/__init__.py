"""Checkpoints that Megatron-Bridge wrote, as Hugging Face checkpoints."""
