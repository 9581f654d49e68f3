"""Trained models as files that other programs run: ONNX for onnxruntime, torch.export's for torch."""
