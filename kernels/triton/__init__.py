"""Triton kernels. Importing this folder does not import triton; its modules do, on first use."""
