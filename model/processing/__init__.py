"""From chat messages, images and videos to model inputs."""
