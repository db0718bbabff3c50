"""Model folders: self-contained, strict, with their provenance."""
