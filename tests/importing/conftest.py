from tiny import tokenizer_folder  # noqa: F401
