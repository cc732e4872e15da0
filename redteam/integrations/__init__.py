"""Other tools, in and out: Flower strategies, JailbreakBench artifacts."""
