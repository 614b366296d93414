"""The method of the paper: the network, its one forward pass and its loss."""
