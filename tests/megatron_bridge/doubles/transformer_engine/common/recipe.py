"""FP8 recipes that megatron subclasses or names at import."""


class Recipe:
    """Base of all."""


class DelayedScaling(Recipe):
    """Megatron subclasses it."""
