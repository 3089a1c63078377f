"""The nodes: schema, validation, one call into core."""
