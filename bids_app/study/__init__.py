"""Which visits a dataset has and which images each one uses."""
