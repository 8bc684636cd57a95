"""The embedded engine: an in-process sampler of Qwen3-VL with continuous admission and shared prefixes."""
