"""Several processes on one run: who they are (`mesh`), what each holds (`shard`), how a sequence is cut (`context`)."""
