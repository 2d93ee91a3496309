"""Kneser-Ney language models: how well text fits reference text, in milliseconds a megabyte.

    text ─▶ units ─▶ estimate (sort) ─▶ model ─▶ perplexities (quality.py)
                          └─▶ arpa ─────▲

| file        | what it does                                                                              |
|-------------|-------------------------------------------------------------------------------------------|
| units.py    | text to ids of words and characters, and the vocabulary                                   |
| sort.py     | external sort of fixed-size records in bounded memory                                     |
| estimate.py | modified Kneser-Ney probabilities of all n-grams of a token stream                        |
| model.py    | the memory-mapped form of a model, and scoring                                            |
| arpa.py     | the exchange format of n-gram models, read and written                                    |

Values are those of KenLM's lmplz and query (Heafield et al. 2013), to the precision of 32-bit floats.
"""
