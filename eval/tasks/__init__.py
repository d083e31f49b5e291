"""The eval/tasks room."""
