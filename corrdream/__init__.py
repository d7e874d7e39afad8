"""Text to 3D by score distillation with cross-view correspondences."""
