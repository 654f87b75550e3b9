"""Cut the vocabulary of a model: which tokens stay, its tokenizer without the others, and its rows."""
