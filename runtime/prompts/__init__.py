"""A prompt for one LLM that any runtime can read: made from frames and text, sent to others, taken from others."""
