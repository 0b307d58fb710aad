"""Model families: how each is recognised and loaded. `recognition` judges a file, one module per family loads it."""
