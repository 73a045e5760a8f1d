"""A trained model is asked: prompts continued, texts judged, vectors made."""
