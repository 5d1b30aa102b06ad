"""A chat model: its template, its batches, its answers, and which of its tokens are responses."""
