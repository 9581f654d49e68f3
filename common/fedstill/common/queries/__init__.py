"""Query strategies: which proxy samples clients are asked about in a round. One file each."""
