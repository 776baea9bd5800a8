"""Is an answer, an image, a day any good."""
