"""Embedded tasks: problems and policies that need no download."""
