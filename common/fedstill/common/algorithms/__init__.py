"""Published methods: one file each, both halves together, found by the file's name."""
