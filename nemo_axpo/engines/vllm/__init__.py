"""Generation with vLLM in this process."""
