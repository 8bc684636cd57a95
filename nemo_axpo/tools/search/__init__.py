"""The search tool and what stands behind it: a service on the web, or a corpus on disk."""
