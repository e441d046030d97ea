"""What a study published, as files for other tools."""
