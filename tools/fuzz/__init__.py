"""What nobody thought of, drawn by chance: calls against float64, and hostile inputs."""
