"""Simulated federations on one machine: the local engine, named scenarios, and the `fedstill` command."""
