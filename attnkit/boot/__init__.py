"""The container's entrypoint: detect, select, validate, report, then start and watch the engine."""
