"""Scripts that print the tables in docs/benchmarks.md."""
