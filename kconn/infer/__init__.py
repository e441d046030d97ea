"""From connections and designs to corrected p-values."""
