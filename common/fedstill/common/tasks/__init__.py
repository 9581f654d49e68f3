"""One file for each task kind. Adding a file here is all that it takes to add one."""
