"""A trained model as a service that speaks the Open Inference Protocol, version 2, over gRPC."""
