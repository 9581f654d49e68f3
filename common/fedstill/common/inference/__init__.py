"""The Open Inference Protocol, version 2, over gRPC: its messages, tensors in them, and a client of any endpoint."""
