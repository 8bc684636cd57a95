"""Functions that may never return, called in processes that are killed when they do not."""
