"""Subcommands of ``nemo-axpo``, a file each: options, and what they call once they run."""
