"""Transcripts, synthetic speech, fusion with text and the word probe."""
