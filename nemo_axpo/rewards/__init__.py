"""Rewards: answers extracted from the last turn and judged by the verifier of their data source."""
