"""Language models. This package knows nothing of devices, ranks, optimizers, files or logging."""
