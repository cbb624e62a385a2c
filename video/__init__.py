"""Long video."""
