"""Qwen3-VL on megatron-core modules, its Hugging Face mapping, and the tiny model of the quickstart."""
