"""Side by side with the peers: ``python -m benchmarks`` prints one JSON line per piece of work."""
