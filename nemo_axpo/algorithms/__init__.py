"""Algorithms on scalar records; importing the package registers ``grpo`` and ``axpo``."""

from nemo_axpo.algorithms import axpo, grpo  # noqa: F401
