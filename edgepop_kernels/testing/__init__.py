"""The tools that tests and benchmarks share: inputs, error bounds, canary buffers, and an oracle written from the
definition."""
