"""Build the project's images and bring them to a cluster: only what changed, named by the hash of what is in it."""
