"""How jobs are started: NeMo's key names, Slurm, NeMo-Run, Kubernetes."""
