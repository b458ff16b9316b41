"""Optimizers, update steps, PPO as it is wired, and the devices that they run on."""
