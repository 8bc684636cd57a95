"""The embedded world: rendered images, questions about them, and the warm start of the quickstart."""
