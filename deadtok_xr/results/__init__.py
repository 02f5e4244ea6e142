"""Results on disk: saved in one pass over the recording, opened again, summarised, and reported as a page.

In: the tree that `analyze` returns. Out: a Zarr store with a group per analysis, text, HTML.
"""
