"""What knows models, sampling and patching; nothing here knows widgets or HTTP."""
