"""A real single-node Kubernetes on one machine without a container engine: up in seconds, gone without a trace.

`__main__` is the command line; `control_plane` is enough for tests that need no node; `full` adds the node.
"""
