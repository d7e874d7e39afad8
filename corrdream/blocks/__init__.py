"""The built-in world with ground truth: captions, signed distances, a renderer, a grade."""
