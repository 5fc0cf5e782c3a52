"""The mathematics: forward model, coil maps, solvers, priors, reconstructions. Tensors in, tensors out."""
