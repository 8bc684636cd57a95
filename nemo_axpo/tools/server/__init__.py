"""Tools on other machines: an HTTP server that runs them on CPU nodes, and tools that ask it."""
