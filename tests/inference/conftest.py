from tiny import model, tokenizer, tokenizer_folder  # noqa: F401
