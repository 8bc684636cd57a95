"""What a job needs, said before it is queued: ranks, parameters, memory per rank, batch arithmetic, and what cannot work.

Arithmetic on a config and a model's sizes; nothing is built, no GPU and no megatron are needed.
"""
