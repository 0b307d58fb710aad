"""Experiment trackers beside the store: what they are told, and that a run never waits for one."""
