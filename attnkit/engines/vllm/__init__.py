"""vLLM: its command line, names, log, and its attention layers both as subject of the self-test and as host of ours."""
