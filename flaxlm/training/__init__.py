"""Configuration of a run, and everything that changes its state."""
