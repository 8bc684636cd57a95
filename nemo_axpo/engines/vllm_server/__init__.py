"""Generation with vLLM servers: a client of their token-level endpoints, and how to start one."""
