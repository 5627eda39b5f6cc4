"""Language models. They know nothing of devices, ranks, optimisers, files or logging."""
