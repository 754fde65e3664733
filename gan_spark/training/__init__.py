"""Training: the driver, the ranks, one rank's loop, and what is told of it."""
