"""Scripts that run in the Dockerfile's build stages, each alone and on a bare Python: nothing here imports the rest."""
