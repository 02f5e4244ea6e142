"""How a language model's embedding matrix moves during training: record, open, analyse, exact to the bit.

    import deadtok_xr as dx
    rec = dx.open_recording("run.zarr", tokens="dead")
    tree = dx.analyze(rec)

`__init__.pyi` lists the public names. Each is loaded when it is first used, so that importing the package costs next to
nothing.
"""

import lazy_loader

from deadtok_xr._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
