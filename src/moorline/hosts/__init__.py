"""The method in other people's trainers; each file is imported by its host alone."""
