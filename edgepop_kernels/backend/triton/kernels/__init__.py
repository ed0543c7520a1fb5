"""Triton kernels: bare ``@triton.jit`` functions of pointers, strides and compile-time shapes. Nothing of ours is
imported here, except by one kernel file from another."""
