"""Training checkpoints: sharded tensors, their checksums, and a directory that is either whole or absent."""
