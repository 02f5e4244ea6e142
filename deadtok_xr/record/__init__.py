"""Record parameters and their optimizer's state while a training loop runs.

In: a parameter, an optimizer, and `Recorder.log` from the loop. Out: a recording store that can be read meanwhile. It
imports `store` and what lies below it.
"""
