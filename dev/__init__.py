"""What a person needs to run Darkroom on one machine: a real cluster, an S3 store, image builds. Nothing here ships."""
