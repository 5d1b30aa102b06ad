"""Safety token regularization: the tokens, the drift, the reference, and the term in the loss."""
