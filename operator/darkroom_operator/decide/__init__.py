"""Decisions: pure functions from what is known to what should be written. No I/O, no clock, no kopf, no client."""
