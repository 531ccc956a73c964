"""The parts of `benchmarks/analysis.py`: models and prompts, the methods, the stopwatch, the scales."""
