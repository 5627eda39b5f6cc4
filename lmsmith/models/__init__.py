"""Language models. They know nothing of devices, ranks, optimizers, files or logging."""
