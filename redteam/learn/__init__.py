"""Learning: the one training loop, augmentation, models, features and perturbation balls."""
