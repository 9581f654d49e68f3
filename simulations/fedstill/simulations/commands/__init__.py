"""Commands of `fedstill` beside those of simulation, a file each: plain functions, which `cli` gives their names."""
