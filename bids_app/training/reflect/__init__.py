"""Training REFLECT: the autoencoder, the flow, and the flow made straight."""
