"""Near duplicates: documents that differ from an earlier one by a few characters.

sketch.py   map stage: folded text to a SimHash and a MinHash sketch, 3 bytes a value
pairs.py    keys of candidates, verification of a pair, union-find
index.py    the whole corpus: bucket files, pairs, clusters, who is kept, evidence, later batches
"""

from xmodel.corpus.near_duplicates.index import compare, find_near_duplicates, record_file, records, write_records
from xmodel.corpus.near_duplicates.sketch import sketching

__all__ = ["compare", "find_near_duplicates", "record_file", "records", "sketching", "write_records"]
