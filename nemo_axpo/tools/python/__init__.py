"""``python``: a persistent interpreter per rollout, behind the kernel's walls."""
