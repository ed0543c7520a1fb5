"""Methods around the masks, in plain PyTorch on top of the public API: pruning criteria, Bayesian tickets, graphs."""
