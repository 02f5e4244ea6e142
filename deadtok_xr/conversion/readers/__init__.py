"""Read file formats as sources of named arrays, part by part, without converting any value.

In: a path. Out: a `source.Source`, from `formats.open_source`, which recognises a format by the content of a file. One
file for each format (HDF5, safetensors, npz, torch), and sources of several files: shards and model folders (`merged`),
and checkpoints of one run (`stacked`, `folders`). Readers import `bfloat16` and `errors`, and nothing else of the
package.
"""
