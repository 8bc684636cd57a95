"""Generation servers behind one engine: routing, retries, health, weights pushed to all."""
