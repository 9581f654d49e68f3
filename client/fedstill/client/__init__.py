"""The client's side: a Flower ClientApp, the student on disk, and the guard over what may leave."""
