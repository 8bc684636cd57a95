"""Benchmarks: their published files as questions, answers sampled and judged, scores with intervals, tables."""
