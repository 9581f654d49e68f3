"""Predictions with an exported student: NumPy and onnxruntime alone, no torch and no Flower."""
