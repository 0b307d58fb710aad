"""The networks of a LoraTraining. `adapter` puts one into a model, `building` knows them all; each has its module."""
