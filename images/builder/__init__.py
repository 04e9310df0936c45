"""From platforms.yaml to a container image: locks, environments, base image, build context, docker build."""
