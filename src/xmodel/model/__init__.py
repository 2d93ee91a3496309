"""The Llama-shaped decoder: `transformer` (the model), `loss`, `checkpoint_io` (folders), `config`, `counts`."""
