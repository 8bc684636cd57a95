"""Generation with ``trtllm-serve``: a client of its token-level endpoints, and weights by CUDA IPC handles."""
