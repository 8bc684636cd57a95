"""What a run left behind, made visible: tables, curves, and trees down to the advantage of each token."""
