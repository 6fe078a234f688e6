"""A hub to try out, for one person on one machine: demo users, simulated GPUs where there are none, no isolation."""
