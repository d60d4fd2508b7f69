"""What happens during training: checkpoints, signals, progress, logs."""
