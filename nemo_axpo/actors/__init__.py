"""The trainer: the policy on megatron-core, its optimizer and one training step."""
