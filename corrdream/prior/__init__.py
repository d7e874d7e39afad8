"""The frozen multi-view diffusion models that drive the distillation."""
