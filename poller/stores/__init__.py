"""Where checkpoints are kept: one medium a file."""
