"""Arrays in, arrays out: the formulas, without labels, files or workers."""
