"""`make demo`: from nothing to sample pictures of a LoRA that was trained on a real cluster.

`__main__` is the order of events; `site` knows the example and the cluster, `ownership` leaves alone what is somebody
else's, `installing` brings the operator, `data` the base model and the pictures, `running` applies the training,
follows it and shows what came of it.
"""
