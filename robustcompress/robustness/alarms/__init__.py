"""Signs that a robust accuracy says more about the attack than about the network."""
