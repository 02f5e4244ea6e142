"""Record parameters and their optimizer's state while a training loop runs.

In: a parameter, its optimizer, and `Recorder.log` from the loop. Out: a recording store that can be read while it
grows. May import: `store`, `replay` (to check the first updates), and what lies below them.

recorder              the context manager and the hooks of the optimizer
validation            checks of the arguments
recorded_parameter    a parameter and where its gradient and moments are found
sampled_parameters    a sample of the elements of several parameters, recorded like one
sample_recorder       a recorder for the samples of each parameter group and dtype
sharded               parameters that are sharded over ranks
schedule              which updates are recorded
hooks                 functions before and after each step of the optimizer
scaler                attempts that a GradScaler skips
session               from a step in the loop to a write: buffers, settings, logged values
host_buffers          steps in host memory, and the copies into them
writer_thread         writes full buffers while the training continues
appender              a store that grows at its end
resume                the step from which a recording is resumed
self_check            whether gradients belong to their updates, and whether updates can be replayed
attributes            attributes of the store about optimizer and machine
"""

from deadtok_xr.recorder.recorder import Recorder

__all__ = ["Recorder"]
