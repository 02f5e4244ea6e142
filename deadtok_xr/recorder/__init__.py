"""The parts of `deadtok_xr.record`: what is followed, host buffers, the thread that writes, the growing store."""
