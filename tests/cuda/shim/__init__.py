"""CUDA sources, unmodified, on the CPU: each CUDA thread of a block is a fiber.

`build` makes a shared library of a ``.cu`` file with g++; `standin.StandIn` runs its kernels on
NumPy arrays in the place of CuPy and reports what a GPU would leave undefined.
"""
