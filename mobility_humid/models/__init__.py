"""Identity verifiers and classifiers of trips, and baselines without training by gradients."""
