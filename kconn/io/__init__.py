"""Files in and out: the only modules that open images, tables and the store."""
