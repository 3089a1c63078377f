"""One file per paper: what each method wants of an attention call, as pure maths on descriptions."""
