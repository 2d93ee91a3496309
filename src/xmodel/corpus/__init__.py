"""Text in, clean weighted documents out: readers, filters, duplicates, questions, the embedded sandbox corpus."""
