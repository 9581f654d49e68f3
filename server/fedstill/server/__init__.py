"""The server's side: a Flower ServerApp, the round engine, admission, teachers, checkpoints, trackers, report."""
