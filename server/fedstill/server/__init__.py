"""The server's side: a Flower ServerApp, the round engine, admission, shared teachers, checkpoints, trackers, report."""
