"""File formats as sources of named arrays, one file per format; every array is read by parts."""
