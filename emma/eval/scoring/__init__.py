"""Scoring rules and one scorer per benchmark: pure functions of official files and answers."""
