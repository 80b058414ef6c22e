"""Answers: from question to end."""
