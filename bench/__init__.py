"""Speed and accuracy of the kernels, measured. Never imported by the pack."""
