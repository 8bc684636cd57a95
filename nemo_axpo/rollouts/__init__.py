"""Rollouts: the agent loop of one row, the resampler of thinking prefixes, and the producer that runs many at once."""
