"""The step on States: the compiled update, donation of buffers, jit, and evaluation weights."""
