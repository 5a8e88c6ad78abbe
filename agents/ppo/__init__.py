"""PPO with rollouts that stay on the table's device."""
