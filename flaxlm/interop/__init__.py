"""Models and tokenizers from and to the formats of Hugging Face."""
