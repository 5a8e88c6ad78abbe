"""Training runs: settings, algorithms, callbacks, checkpoints and run directories."""
