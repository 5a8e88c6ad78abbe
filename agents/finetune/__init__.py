"""Fine-tuning of the encoder on the routing task."""
