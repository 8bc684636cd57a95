"""Names that megatron imports; none is called without FP8."""


class FP8GlobalStateManager:
    """Of FP8 alone."""


def fp8_autocast(*arguments, **options):
    """Not possible here."""
    raise NotImplementedError


fp8_model_init = fp8_autocast
