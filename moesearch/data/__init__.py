"""From a name or a path to token ids: corpora, tokenizers, batches. Only tokens, tokenizers, batches import torch."""
