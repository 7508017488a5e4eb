"""Text: tokenizers, prompts, the tokens that a class name owns, and the BERT / RoBERTa encoder."""
