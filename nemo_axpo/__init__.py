"""AXPO for Qwen3-VL agents: exact, open, and the same loop from a laptop to a cluster."""
