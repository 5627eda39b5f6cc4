"""Looks inside a trained model: attention, activations, logit lens, weights, losses by position."""
