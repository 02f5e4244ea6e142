"""Find out what the arrays of a source are: keys, axes, step labels, tokens, models, and what their values prove.

In: an open `readers.source.Source` and `Options`. Out: parts of a `ConversionPlan`. Small arrays are read, large ones
only where a proof needs their values. May import `readers`, `options` and `plan` of `conversion`, `schema`, `bfloat16`,
`errors` and the token table of `store`.
"""
