"""Data: readers of standard file formats, the proxy set and its digest, the split of a data set over clients."""
