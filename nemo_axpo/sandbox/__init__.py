"""Kernel layers around a process that runs code nobody has read: namespaces, Landlock, seccomp, rlimits; no root needed."""
