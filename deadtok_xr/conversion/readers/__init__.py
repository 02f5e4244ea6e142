"""Read file formats as sources of named arrays, part by part, without converting any value.

In: a path. Out: a `source.Source`, from `formats.open_source`, which recognises a format by the content of a file. One
file for each format (HDF5, safetensors, npz, torch, GGUF, DCP, OCDBT), and sources of several files: shards and model
folders (`merged`), ranks (`ranks`), checkpoints of one run (`stacked`, `folders`), and streams of sparse updates
(`delta_stream`, `prime_rl`, `trl_deltas`). Readers import `bfloat16`, `sparse_updates`, `errors` and the decoding of
tokens' texts, and nothing else of the package.
"""
