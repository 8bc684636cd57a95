"""Evaluation: Pass@1, Pass@k and how a policy uses its tools."""
