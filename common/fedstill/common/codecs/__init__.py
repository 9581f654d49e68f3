"""Codecs: how the arrays of knowledge are packed for the wire. One file each."""
