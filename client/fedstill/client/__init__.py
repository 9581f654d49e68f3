"""The client's side: a Flower ClientApp, the student on disk, and the guard over what may leave."""

import gc

# Flower starts a new process for each message. While torch is imported, the collector looks again and again through all
# that Flower's modules have made, which stays anyway: 0.2 to 0.5 seconds (`python benchmarks/edge.py`).
gc.freeze()
