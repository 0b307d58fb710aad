"""Makers of inputs for tests: small, real and the same every time."""
